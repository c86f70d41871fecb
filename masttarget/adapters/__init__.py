"""Where the master target touches sockets, disks and clocks."""
