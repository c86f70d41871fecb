"""A stand-in for Azure: Resource Manager for machines, disks and snapshots, and page blobs to read them through.

`python -m simlab.azure --inventory FILE` runs it; docs/simlab-azure.md says what is honest about it and what is not.
"""
