"""Every limit of a queue, buffer, retry or message, with the reason for the number."""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB
TIB: Final = 1024 * GIB

DISK_BYTES_MAX: Final = 64 * TIB
"""The largest disk: what VHDX can hold, and the largest VMDK of vSphere is 62 TiB."""
DISK_NAME_BYTES_MAX: Final = 4096
"""PATH_MAX of Linux."""
DESCRIPTOR_BYTES_MAX: Final = 64 * KIB
"""A VMDK text descriptor; real ones are below 2 KiB."""

FRAME_BYTES_MAX: Final = 1 * MIB
"""One sealed frame, header and tag included: larger ones seal hardly faster, and a connection holds three of them."""
HANDSHAKE_BYTES_MAX: Final = 16 * KIB
"""What a peer that has not proved its key may make us hold."""
HANDSHAKE_SECONDS_MAX: Final = 10.0
"""A peer that has not proved its key by then is hung up on."""
UNPROVED_CONNECTIONS_MAX: Final = 64
"""Connections that have not proved their key; more are closed at accept."""
LANES_MAX: Final = 16
"""Connections of one session: what a shaped link with loss can use."""
SESSION_LINKS_MAX: Final = 2 * LANES_MAX
"""Connections of one session that a master target serves: an agent may open a lane before it was heard that it left
another one. Each has buffers of 3 MiB."""

UNACKNOWLEDGED_BYTES_MAX: Final = 48 * MIB
"""What a sender may have under way that is not durable yet: with frames in the making it stays below the 64 MiB
that may be sent twice after a crash."""
COMMIT_BYTES: Final = 16 * MIB
"""The master target makes durable what it applied at the latest after so many bytes: a third of the window, so that
sending goes on while a flush is under way."""
COMMIT_SECONDS: Final = 0.25
"""… or after so long, so that a checkpoint is never older than a second."""
COMMIT_RUNS_MAX: Final = 64 * 1024
"""Changed runs of blocks that wait to be made durable; at so many the master target applies no more of the disk. 10 MiB
of memory, where a frame of zeroes of 64 KiB tells of 4,096 of them."""
QUEUE_EVENTS_MAX: Final = 256
"""Events between two loops of a role; a full queue makes the producer wait."""
DIGEST_BLOCKS_IN_MEMORY_MAX: Final = 4 * 1024 * 1024
"""Blocks whose digests stay in memory (64 MiB for a disk of 256 GiB); a larger disk's digest map lives in a file."""
MASTTARGET_MAP_BLOCKS_MAX: Final = 64 * 1024
"""The same at a master target, which may have 60 disks: 1 MiB each, for a disk of 4 GiB."""
SPARE_BUFFERS_MAX: Final = 4
"""Buffers for a span or a piece that are kept while nobody uses them, for all disks of a master target: as many as
have work for a processor at once."""
LOCAL_SOCKET_BYTES: Final = 4 * MIB
"""What a local socket may hold (Linux grants up to net.core.wmem_max of it): a few frames, so that both processes of
a sync on one machine work at once."""
SHARED_FRAME_BYTES_MAX: Final = 2 * MIB
"""The same between two processes of one machine that share memory, where a frame lies but once and there is one
connection: what each frame costs beside its bytes, an eighth of the time, is halved. 4 MiB gained nothing more."""
SHARED_RING_BYTES: Final = 4 * SHARED_FRAME_BYTES_MAX
"""What they have under way in one direction: a few frames, within a last-level cache."""
REFERENCE_SLOTS_MAX: Final = 2 * 1024 * 1024
"""Slots of 16 bytes in a target disk's index of sectors: 32 MiB know each sector of 6 GiB of content; of more, every
second, fourth, … and the others as their neighbours."""
GROUP_GATHER_SECONDS_MAX: Final = 30.0
"""A member of a replication group waits so long for the others: half of what a silent peer may take."""
GROUP_FREEZE_SECONDS_MAX: Final = 10.0
"""From the order to freeze to the thaw, for all members of a group: a guest whose file systems stand still for longer
loses its own clients. VSS gives a freeze 10 seconds, too."""
APP_CONSISTENT_SECONDS: Final = 3600
"""The failback policy wants an app-consistent point every hour (R137)."""
SCRIPT_SECONDS: Final = 60
"""An application gets so long to come to rest, if nobody says otherwise; VSS gives its writers as much."""
REFERENCE_DISKS_MAX: Final = 6
"""Disks of a master target that are offered references at a time: each may take 40 MiB, and 512 hold all sessions."""
SAVED_BYTES_MAX: Final = 4 * GIB
"""Old content that a master target keeps for references after it was overwritten: files that change places, as long as
no more than this lies between reading the first and writing the last of them."""
REFERENCES_AHEAD_MAX: Final = 4096
"""Referenced blocks (256 MiB) without an answer: what may have to be sent as data after all waits no longer."""
HEARTBEAT_SECONDS: Final = 5.0
"""Each end of a proved connection sends something at least so often."""
IDLE_SECONDS_MAX: Final = 60
"""A proved peer that neither sends nor takes a byte for so long is taken for lost: twelve heartbeats."""

DEVICE_LOCK_SECONDS_MAX: Final = 5.0
"""A device whose flock somebody has is waited for so long: udev looks at a disk within less."""
WRITE_PIECE_BYTES: Final = 256 * KIB
"""One write. A larger one takes larger pages for the cache; those of 2 MiB a virtual machine has often given back to
its host, and gets them again at 0.5 to 1 GB/s, where pieces of this size are written at 4 (ext4, Linux 6.18)."""
LET_GO_BYTES_MAX: Final = 64 * MIB
"""What is written to a new file between two flushes and leaves the page cache at the second: a few group commits. Who
writes more without a flush has taken fresh pages anyway, and may read the file next."""
RESERVED_BYTES_MIN: Final = 256 * KIB
"""For a write to a new file from so much on, room is made first (fallocate): with its place known, a page costs a third
less to write (ext4, Linux 6.18: 0.48 s instead of 0.71 s for 2 GiB), and making room some 20 microseconds."""
WRITE_BEHIND_BYTES: Final = 8 * MIB
"""Written, not flushed: at so much the medium is told to begin. Half of a group commit, which then waits for less."""
ZEROES_BYTES: Final = 256 * KIB
"""The zeroes from which holes are filled, in memory and where media cannot punch: it fits a second-level cache."""
TABLE_CACHE_ENTRIES_MAX: Final = 4096
"""Grain tables of 2 KiB that an open VMDK keeps: 8 MiB of memory, 128 GiB of disk at 64 KiB grains."""
TABLE_DIRTY_ENTRIES_MAX: Final = 8192
"""Changed grain tables that wait for a flush; at so many (16 MiB) the disk flushes by itself."""
VHD_TABLE_BYTES_MAX: Final = 16 * MIB
"""A VHD's block allocation table, held whole: 2040 GiB at blocks of 512 KiB; the usual 2 MiB need a quarter."""
VHDX_FILE_BYTES_MAX: Final = 2 * DISK_BYTES_MAX
"""No VHDX file is longer: its blocks, their table and what unfinished writers left."""
VHDX_LOG_GROWTH_BYTES_MAX: Final = 1 * TIB
"""A replayed log makes a VHDX at most so much longer: no writer allocates more between two flushes, and what tells
which parts of a file are taken grows with its length."""
VHDX_LOG_BYTES_MAX: Final = 64 * MIB
"""The log of a VHDX is read whole when it has to be replayed: Hyper-V and qemu make it 1 MiB."""
VHDX_METADATA_BYTES_MAX: Final = 1 * MIB
"""A VHDX' metadata region is read whole: 64 KiB of table and five small items (MS-VHDX 2.6 suggests 1 MiB)."""
VHDX_TABLE_PAGES_MAX: Final = 4096
"""Pages of 4 KiB of a VHDX' block table that are kept: 16 MiB of memory, 64 TiB of disk at the usual 32 MiB blocks."""
VHDX_DIRTY_PAGES_MAX: Final = 1024
"""Changed pages of it that wait for a flush; at so many the disk flushes by itself."""
VHD_DIRTY_BITMAPS_MAX: Final = 8192
"""Changed sector bitmaps of a differencing VHD that wait for a flush (4 MiB); at so many the disk flushes by itself."""
VMDK_DIRECTORY_BYTES_MAX: Final = 8 * MIB
"""A VMDK's grain directory, held whole: 64 TiB at grains of 64 KiB."""
VHD_GROWTH_BYTES: Final = 64 * MIB
"""A dynamic VHD moves its footer ahead by so much, or by its own size where that is more: each move is a flush,
and what lies between is a hole."""
SPARE_RUNS_MAX: Final = 4096
"""Runs of zeroed, released grains that an open VMDK remembers for new use; more are left as holes in the file."""
TABLE_CACHE_BYTES_MAX: Final = 8 * MIB
"""Tables that an open layer of a chain, a stream or a qcow2 keeps: at 64 KiB to an entry that is 64 GiB of disk."""
UNPACKED_CACHE_ENTRIES_MAX: Final = 4
"""Compressed grains or clusters that stay unpacked: what four readers of neighbouring sectors have in hand."""
VMDK_EXTENTS_MAX: Final = 1024
"""Extents of one VMDK: 2 TiB in files of 2047 MiB, and as many open files; their lines fit the largest descriptor."""
QCOW2_TABLE_BYTES_MAX: Final = 32 * MIB
"""A qcow2's L1 table, held whole, as qemu bounds it: 2 EiB at clusters of 2 MiB, 64 TiB at those of 16 KiB and more."""
CHECK_FINDINGS_MAX: Final = 100
"""Findings that a check of an image tells: a person reads no more, and a hostile table has millions."""
PARENTS_MAX: Final = 64
"""Images of one chain: VMware stops at 32 snapshots, Hyper-V warns at 50; each costs open files."""
IDENTITY_READ_BYTES_MAX: Final = 128 * KIB
"""What a fingerprint reads of the disk and of each partition: the farthest superblock, btrfs', ends at 68 KiB."""

SIMLAB_CALLS_MAX: Final = 20_000
"""Calls that a stand-in's journal keeps: a long scenario makes some thousands."""
SIMLAB_OPERATIONS_MAX: Final = 10_000
"""Long-running operations that a stand-in can still be asked about."""
SIMLAB_BODY_BYTES_MAX: Final = 8 * MIB
"""What a stand-in takes as one request: twice the largest Put Page."""

PAGE_BLOB_READ_BYTES_MAX: Final = 4 * MIB
"""One ranged GET of a page blob: a span of the disk; larger ones gain nothing and lose more when one breaks."""
PAGE_BLOB_READS_MAX: Final = 4
"""Ranged GETs under way for one read: 16 MiB fill a gigabit link at 100 ms."""
CONTENT_READ_BYTES_MAX: Final = 16 * MIB
"""What is read at once for a content root: of a page blob as many ranged GETs as may be under way."""
PAGE_BLOB_ATTEMPTS_MAX: Final = 7
"""A call of the blob service is made so often: with doubling pauses from half a second that bridges half a minute,
in which Azure moves a busy partition."""
PAGE_BLOB_PAUSE_SECONDS_MAX: Final = 60.0
"""The longest pause that the blob service may ask for; a longer one is told to the operator instead."""
PAGE_LIST_WINDOW_BYTES: Final = 16 * GIB
"""Page ranges are asked for in windows: Azure's own time limit breaks the list of a whole, fragmented disk."""
PAGE_LIST_BYTES_MAX: Final = 64 * MIB
"""One page of a page list: Azure's 10,000 ranges are 1 MiB; an emulator answers a window's 4 KiB crumbs in one page."""

VCENTER_TASK_SECONDS_MAX: Final = 600.0
"""A task of vCenter that writes no disk (power, reconfiguration, snapshot) takes seconds; then a person looks."""
VCENTER_MERGE_SECONDS_MAX: Final = 24 * 3600.0
"""Merging a snapshot copies what it holds: 10 TiB at 120 MiB/s."""
VCENTER_WAIT_SECONDS_MAX: Final = 20.0
"""One wait for updates: shorter than what firewalls and proxies allow a silent connection."""
VCENTER_IDLE_SECONDS_MAX: Final = 30.0
"""A connection that lay idle for longer is not used again: the other side, or a proxy, may have dropped it."""
VCENTER_OBJECTS_MAX: Final = 500
"""Objects in one answer of the property collector; the rest is asked for page by page."""
MASTER_TARGET_DISKS_MAX: Final = 60
"""Disks on a master target: four SCSI controllers of fifteen (R050)."""

BACKLOG_BYTES_SMALL: Final = 64 * MIB
"""A cycle that found no more than this changed ends the catching up before a failback: seconds on most lines."""
BACKLOG_CYCLES_MAX: Final = 10
"""Cycles before a failback; a machine that still changes faster than the line carries only gets longer downtime."""
SAS_SECONDS: Final = 24 * 3600
"""A disk's read access in Azure, revoked after use: the longest final read (4 TiB at 50 MB/s), and some."""
MASTTARGET_DISKS_MAX: Final = 60
"""Disks that a master target's VM may have: four SCSI controllers of 15 units each."""
REQUEST_BYTES_MAX: Final = 64 * KIB
"""A request to the configuration server's API: the largest, an item of 60 disks, has 20 KiB."""

AZURE_ATTEMPTS_MAX: Final = 7
"""A call of the Resource Manager is made so often: with doubling pauses from a second that bridges a minute."""
AZURE_PAUSE_SECONDS_MAX: Final = 240.0
"""The longest pause that Azure may ask for: its shorter throttling window is three minutes; the longer, of half an
hour, goes to the job."""
AZURE_BUSY_PAUSE_SECONDS_MAX: Final = 15.0
"""Between two questions whether another operation has ended: power verbs take about a minute."""
AZURE_MESSAGE_CHARACTERS_MAX: Final = 400
"""What an error repeats of Azure's own words."""

SEGMENT_BYTES: Final = 32 * MIB
"""A segment of the retention journal: what pruning gives back at once, and what an opening reads at most again."""
UNDO_PIECE_BYTES: Final = 1 * MIB
"""Old content that is read and packed at once: it stays in a core's own cache, and 60 disks have one each."""
UNDO_FLUSH_BYTES: Final = 4 * MIB
"""Undo records that wait for no one are flushed after so much, so that the write that needs them need not wait."""
HELD_BYTES_MAX: Final = 64 * MIB
"""Frames of all lanes that wait until what they overwrite is durable; beyond that each waits alone."""
FOLLOWING_BYTES_MIN: Final = 64 * KIB
"""So much of the next frame has to be there for a frame to wait for it: a slow line's next frame is not waited for."""
RETENTION_SECONDS: Final = 24 * 3600
"""The failback policy keeps every point for so long (R137)."""
RPO_SECONDS: Final = 15 * 60.0
"""The failback policy's RPO threshold (R137): it only alerts."""
PROGRESS_SECONDS: Final = 10.0
"""Between two words of a disk's progress in the log: a person that watches sees it move, a day is 8,640 lines."""
RATE_WINDOW_SECONDS: Final = 30.0
"""A disk's rate is that of the last half minute: longer than any flush, shorter than an operator's patience."""
RETENTION_RESERVE_BYTES: Final = 256 * KIB
"""Room on the retention volume that no undo record takes: giving a point up writes a line and a head first."""
RETENTION_BYTES_MIN: Final = 2 * SEGMENT_BYTES
"""A retention volume holds a segment that is written and one that is given up; less would only ever wait."""
POINTS_LINE_BYTES_MAX: Final = 64 * KIB
"""A line of the list of points: a point of 60 disks has 12 KiB."""
