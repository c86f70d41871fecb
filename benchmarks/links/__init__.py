"""Network links of a chosen rate, round trip and loss, inside this machine."""
