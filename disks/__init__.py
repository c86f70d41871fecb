"""Every disk that is read or written, behind one small verb set; byte layouts apart from input and output."""
