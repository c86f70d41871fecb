package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// The delta of a snapshot is an ESX sparse extent ("COWD", VMware, "Virtual
// Disk Format 5.0", section "ESX Server Sparse Extents"): a header of four
// sectors, a grain directory, grain tables of 4096 entries, grains of one sector.

const (
	cowdMagic         = 0x44574f43 // "COWD"
	cowdHeaderSectors = 4
	cowdTableEntries  = 4096
	cowdTableSectors  = cowdTableEntries * 4 / sectorBytes
	cowdSectorsMax    = 1 << 32
)

var errDeltaTooLarge = errors.New("a disk of 2 TiB or more needs the seSparse format")

type cowd struct {
	file      *os.File
	grain     int64 // sectors
	directory []uint32
	free      int64 // the next free sector
}

const deltaDescriptor = `# Disk DescriptorFile
version=1
encoding="UTF-8"
CID=%08x
parentCID=%08x
createType="vmfsSparse"
parentFileNameHint=%s

# Extent description
RW %d VMFSSPARSE "%s"

# The Disk Data Base
#DDB

`

// createDelta makes an empty child of `parent`, beside it.
func createDelta(path string, parent *diskFile) error {
	sectors := parent.capacity() / sectorBytes
	if sectors >= cowdSectorsMax {
		return errDeltaTooLarge
	}
	base := strings.TrimSuffix(filepath.Base(path), ".vmdk")
	extent := filepath.Join(filepath.Dir(path), base+"-delta.vmdk")
	entries := (sectors + cowdTableEntries - 1) / cowdTableEntries
	directorySectors := (entries*4 + sectorBytes - 1) / sectorBytes
	header := make([]byte, cowdHeaderSectors*sectorBytes)
	for i, v := range []uint32{
		cowdMagic, 1, 3, uint32(sectors), 1, cowdHeaderSectors, uint32(entries),
		uint32(cowdHeaderSectors + directorySectors),
	} {
		binary.LittleEndian.PutUint32(header[4*i:], v)
	}
	copy(header[32:32+1023], filepath.Base(parent.path))
	f, err := os.OpenFile(extent, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(header)
	if err == nil {
		err = f.Truncate((cowdHeaderSectors + directorySectors) * sectorBytes)
	}
	if closing := f.Close(); err == nil {
		err = closing
	}
	if err == nil {
		// The child starts with its parent's content and so with its CID.
		text := fmt.Sprintf(deltaDescriptor, parent.cid, parent.cid,
			strconv.Quote(filepath.Base(parent.path)), sectors, filepath.Base(extent))
		err = os.WriteFile(path, []byte(text), 0o644)
	}
	if err != nil {
		_ = os.Remove(extent)
	}
	return err
}

func openCowd(path string) (*cowd, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	header := make([]byte, cowdHeaderSectors*sectorBytes)
	if _, err := io.ReadFull(f, header); err != nil {
		_ = f.Close()
		return nil, err
	}
	field := func(i int) uint32 { return binary.LittleEndian.Uint32(header[4*i:]) }
	if field(0) != cowdMagic || field(4) == 0 {
		_ = f.Close()
		return nil, fmt.Errorf("%w: %s is no ESX sparse extent", errNotVMDK, path)
	}
	raw := make([]byte, int64(field(6))*4)
	if _, err := f.ReadAt(raw, int64(field(5))*sectorBytes); err != nil {
		_ = f.Close()
		return nil, err
	}
	c := &cowd{file: f, grain: int64(field(4)), free: int64(field(7)), directory: make([]uint32, field(6))}
	for i := range c.directory {
		c.directory[i] = binary.LittleEndian.Uint32(raw[4*i:])
	}
	return c, nil
}

// grains calls f for every grain that the delta holds, in the disk's order.
func (c *cowd) grains(f func(sector int64, data []byte) error) error {
	table := make([]byte, cowdTableEntries*4)
	data := make([]byte, c.grain*sectorBytes)
	for i, at := range c.directory {
		if at == 0 {
			continue
		}
		if _, err := c.file.ReadAt(table, int64(at)*sectorBytes); err != nil {
			return err
		}
		for j := range int64(cowdTableEntries) {
			grain := binary.LittleEndian.Uint32(table[4*j:])
			if grain == 0 {
				continue
			}
			if _, err := c.file.ReadAt(data, int64(grain)*sectorBytes); err != nil {
				return err
			}
			if err := f((int64(i)*cowdTableEntries+j)*c.grain, data); err != nil {
				return err
			}
		}
	}
	return nil
}

// put writes one grain; data goes down before the entry that points to it.
func (c *cowd) put(sector int64, data []byte) error {
	index := sector / c.grain
	slot := index / cowdTableEntries
	if c.directory[slot] == 0 {
		table := c.free
		c.free += cowdTableSectors
		if _, err := c.file.WriteAt(make([]byte, cowdTableSectors*sectorBytes), table*sectorBytes); err != nil {
			return err
		}
		c.directory[slot] = uint32(table)
		if err := c.putWord(cowdHeaderSectors*sectorBytes+4*slot, uint32(table)); err != nil {
			return err
		}
	}
	entry := int64(c.directory[slot])*sectorBytes + 4*(index%cowdTableEntries)
	var word [4]byte
	if _, err := c.file.ReadAt(word[:], entry); err != nil {
		return err
	}
	grain := int64(binary.LittleEndian.Uint32(word[:]))
	fresh := grain == 0
	if fresh {
		grain = c.free
		c.free += c.grain
	}
	if _, err := c.file.WriteAt(data, grain*sectorBytes); err != nil {
		return err
	}
	if !fresh {
		return nil
	}
	if err := c.putWord(entry, uint32(grain)); err != nil {
		return err
	}
	return c.putWord(4*7, uint32(c.free))
}

func (c *cowd) putWord(offset int64, v uint32) error {
	var word [4]byte
	binary.LittleEndian.PutUint32(word[:], v)
	_, err := c.file.WriteAt(word[:], offset)
	return err
}

// mergeDelta carries the child's grains into its parent; the answer is whether
// there were any, for then the parent's content is another one.
func mergeDelta(child, parent *diskFile) (bool, error) {
	if child.createType != "vmfsSparse" {
		return false, fmt.Errorf("%w: %s is no delta", errNotVMDK, child.path)
	}
	source, err := openCowd(child.extentPath(child.extents[0]))
	if err != nil {
		return false, err
	}
	defer source.file.Close()
	if len(parent.extents) != 1 {
		return false, fmt.Errorf("%s has %d extents; a delta is merged into one", parent.path, len(parent.extents))
	}
	var write func(sector int64, data []byte) error
	if parent.createType == "vmfsSparse" {
		target, err := openCowd(parent.extentPath(parent.extents[0]))
		if err != nil {
			return false, err
		}
		defer target.file.Close()
		write = target.put
	} else {
		target, err := os.OpenFile(parent.extentPath(parent.extents[0]), os.O_WRONLY, 0)
		if err != nil {
			return false, err
		}
		defer target.Close()
		write = func(sector int64, data []byte) error {
			_, err := target.WriteAt(data, sector*sectorBytes)
			return err
		}
	}
	changed := false
	err = source.grains(func(sector int64, data []byte) error {
		changed = true
		return write(sector, data)
	})
	return changed, err
}
