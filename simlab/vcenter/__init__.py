"""The stand-in for vCenter: a Go program around govmomi's simulator, and its launcher. See docs/simlab-vcenter.md."""
