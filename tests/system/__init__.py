"""The command and the roles as a user runs them; other programs judge the disks."""
