"""Where the agent touches sockets, disks and clocks."""
