package main

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// A virtual disk is a text descriptor plus the extents it names (VMware,
// "Virtual Disk Format 5.0"). Stock vcsim writes descriptors that hold no UUID
// and extents of no size; a master target that opens the file itself needs both.

const (
	sectorBytes        = 512
	descriptorBytesMax = 64 << 10
	noParentCID        = 0xffffffff
)

var (
	errNotVMDK = errors.New("not a VMDK")

	extentLine = regexp.MustCompile(`(?m)^(RW|RDONLY|NOACCESS)[ \t]+(\d+)[ \t]+(\w+)[ \t]+"([^"\n]*)"`)
)

type extent struct {
	sectors int64
	kind    string // VMFS, FLAT, VMFSSPARSE, SPARSE …
	name    string
}

// diskFile is a descriptor as read from its file.
type diskFile struct {
	path       string
	text       string
	hosted     bool // the descriptor is embedded in a hosted sparse extent
	createType string
	extents    []extent
	uuid       string // as vSphere shows it: 6000c29x-…
	cid        uint32
	parentCID  uint32
	parentHint string
}

func (d *diskFile) capacity() int64 {
	var sectors int64
	for _, e := range d.extents {
		sectors += e.sectors
	}
	return sectors * sectorBytes
}

// files are the descriptor and everything it needs, as real paths.
func (d *diskFile) files() []string {
	all := []string{d.path}
	for _, e := range d.extents {
		if name := d.extentPath(e); name != d.path {
			all = append(all, name)
		}
	}
	return all
}

func (d *diskFile) extentPath(e extent) string {
	return filepath.Join(filepath.Dir(d.path), filepath.Base(e.name))
}

func readDisk(path string) (*diskFile, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()

	head := make([]byte, sectorBytes)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("%w: %s", errNotVMDK, err)
	}
	d := &diskFile{path: path}
	if n == sectorBytes && string(head[:4]) == "KDMV" {
		d.hosted = true
		offset := int64(binary.LittleEndian.Uint64(head[28:])) * sectorBytes
		size := int64(binary.LittleEndian.Uint64(head[36:])) * sectorBytes
		if offset == 0 || size == 0 || size > descriptorBytesMax {
			return nil, fmt.Errorf("%w: the sparse extent embeds no descriptor", errNotVMDK)
		}
		if _, err := f.Seek(offset, io.SeekStart); err != nil {
			return nil, err
		}
	} else if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(f, descriptorBytesMax+1))
	if err != nil {
		return nil, err
	}
	if end := bytes.IndexByte(text, 0); end >= 0 {
		text = text[:end]
	}
	if len(text) > descriptorBytesMax || !bytes.Contains(text, []byte("# Disk DescriptorFile")) {
		return nil, fmt.Errorf("%w: no descriptor found", errNotVMDK)
	}
	d.text = string(text)
	d.parse()
	if len(d.extents) == 0 {
		return nil, fmt.Errorf("%w: the descriptor names no extent", errNotVMDK)
	}
	return d, nil
}

func (d *diskFile) parse() {
	d.createType = d.get("createType")
	d.parentHint = d.get("parentFileNameHint")
	d.cid = parseCID(d.get("CID"))
	d.parentCID = parseCID(d.get("parentCID"))
	d.uuid = shownUUID(d.get("ddb.uuid"))
	d.extents = nil
	for _, m := range extentLine.FindAllStringSubmatch(d.text, -1) {
		sectors, _ := strconv.ParseInt(m[2], 10, 64)
		d.extents = append(d.extents, extent{sectors: sectors, kind: m[3], name: m[4]})
	}
}

func keyLine(key string) *regexp.Regexp {
	return regexp.MustCompile(`(?mi)^` + regexp.QuoteMeta(key) + `[ \t]*=[ \t]*"?([^"\n]*)"?[ \t]*$`)
}

func (d *diskFile) get(key string) string {
	if m := keyLine(key).FindStringSubmatch(d.text); m != nil {
		return strings.TrimSpace(m[1])
	}
	return ""
}

// set changes a line, or adds it at the end, and leaves every other byte alone.
func (d *diskFile) set(key, value string) {
	line := fmt.Sprintf("%s=%s", key, value)
	if strings.HasPrefix(key, "ddb.") {
		line = fmt.Sprintf("%s = %s", key, value)
	}
	if at := keyLine(key).FindStringIndex(d.text); at != nil {
		d.text = d.text[:at[0]] + line + d.text[at[1]:]
	} else {
		d.text = strings.TrimRight(d.text, "\n") + "\n" + line + "\n"
	}
	d.parse()
}

func (d *diskFile) setCID(cid uint32)       { d.set("CID", fmt.Sprintf("%08x", cid)) }
func (d *diskFile) setParentCID(cid uint32) { d.set("parentCID", fmt.Sprintf("%08x", cid)) }
func (d *diskFile) setParentHint(n string)  { d.set("parentFileNameHint", strconv.Quote(n)) }
func (d *diskFile) setUUID(uuid string)     { d.set("ddb.uuid", strconv.Quote(writtenUUID(uuid))) }

// save replaces the descriptor in one step: a reader sees the old or the new one.
func (d *diskFile) save() error {
	if d.hosted {
		return fmt.Errorf("%w: an embedded descriptor is left as it is", errNotVMDK)
	}
	temporary := d.path + ".new"
	if err := os.WriteFile(temporary, []byte(d.text), 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, d.path)
}

const flatDescriptor = `# Disk DescriptorFile
version=1
encoding="UTF-8"
CID=%08x
parentCID=ffffffff
createType="vmfs"

# Extent description
RW %d VMFS "%s"

# The Disk Data Base
#DDB

ddb.adapterType = "%s"
ddb.geometry.cylinders = "%d"
ddb.geometry.heads = "255"
ddb.geometry.sectors = "63"
ddb.thinProvisioned = "%d"
ddb.uuid = "%s"
ddb.virtualHWVersion = "13"
`

// createDisk makes a VMDK as ESXi has it: descriptor and a flat extent, sparse
// in the file system, so that a disk of any size costs nothing.
func createDisk(path string, capacity int64, uuid, adapter string, thin bool) error {
	if _, err := os.Lstat(path); err == nil {
		return os.ErrExist
	}
	if uuid == "" {
		uuid = newDiskUUID()
	}
	base := strings.TrimSuffix(filepath.Base(path), ".vmdk")
	flat := filepath.Join(filepath.Dir(path), base+"-flat.vmdk")
	f, err := os.OpenFile(flat, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	sectors := (capacity + sectorBytes - 1) / sectorBytes
	err = f.Truncate(sectors * sectorBytes)
	if closing := f.Close(); err == nil {
		err = closing
	}
	if err != nil {
		_ = os.Remove(flat)
		return err
	}
	thinProvisioned := 0
	if thin {
		thinProvisioned = 1
	}
	text := fmt.Sprintf(flatDescriptor, newCID(), sectors, filepath.Base(flat), adapter,
		sectors/(255*63), thinProvisioned, writtenUUID(uuid))
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		_ = os.Remove(flat)
		return err
	}
	return nil
}

// growDisk enlarges the last extent; the new room reads as zeroes.
func growDisk(d *diskFile, capacity int64) error {
	last := d.extents[len(d.extents)-1]
	if last.kind != "VMFS" && last.kind != "FLAT" {
		return fmt.Errorf("extents of kind %s do not grow", last.kind)
	}
	more := (capacity-d.capacity()+sectorBytes-1)/sectorBytes + last.sectors
	if err := os.Truncate(d.extentPath(last), more*sectorBytes); err != nil {
		return err
	}
	at := extentLine.FindAllStringSubmatchIndex(d.text, -1)
	m := at[len(at)-1]
	d.text = d.text[:m[4]] + strconv.FormatInt(more, 10) + d.text[m[5]:]
	d.setCID(newCID())
	return d.save()
}

func removeDisk(path string) error {
	d, err := readDisk(path)
	if err != nil {
		return err
	}
	for _, file := range d.files() {
		if err := os.Remove(file); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	return nil
}

// transferDisk moves or copies a disk under another name: extents are named
// after their descriptor, as vmkfstools does it.
func transferDisk(source, target string, each func(from, to string) error) error {
	if _, err := os.Lstat(target); err == nil {
		return os.ErrExist
	}
	d, err := readDisk(source)
	if err != nil {
		return err
	}
	if d.hosted {
		return each(source, target)
	}
	oldBase := strings.TrimSuffix(filepath.Base(source), ".vmdk")
	newBase := strings.TrimSuffix(filepath.Base(target), ".vmdk")
	moved := &diskFile{path: target, text: d.text}
	for i, e := range d.extents {
		name := fmt.Sprintf("%s-s%03d.vmdk", newBase, i+1)
		if rest, ok := strings.CutPrefix(e.name, oldBase+"-"); ok {
			name = newBase + "-" + rest
		}
		to := filepath.Join(filepath.Dir(target), name)
		if _, err := os.Lstat(to); err == nil {
			return os.ErrExist
		}
		if err := each(d.extentPath(e), to); err != nil {
			return err
		}
		moved.text = strings.Replace(moved.text, `"`+e.name+`"`, `"`+name+`"`, 1)
	}
	if err := moved.save(); err != nil {
		return err
	}
	if _, err := os.Lstat(d.extentPath(d.extents[0])); os.IsNotExist(err) {
		return os.Remove(source) // the extents were moved, so the old descriptor goes too
	}
	return nil
}

// moveFile renames, or copies and removes between file systems.
func moveFile(from, to string) error {
	if err := os.Rename(from, to); err == nil {
		return nil
	}
	if err := copyFile(from, to); err != nil {
		return err
	}
	return os.Remove(from)
}

// copyFile leaves holes where the source reads as zeroes.
func copyFile(from, to string) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer target.Close()
	buffer, zeroes := make([]byte, 1<<20), make([]byte, 1<<20)
	var offset int64
	for {
		n, err := io.ReadFull(source, buffer)
		if n > 0 && !bytes.Equal(buffer[:n], zeroes[:n]) {
			if _, err := target.WriteAt(buffer[:n], offset); err != nil {
				return err
			}
		}
		offset += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return target.Truncate(offset)
		}
		if err != nil {
			return err
		}
	}
}

func parseCID(s string) uint32 {
	n, err := strconv.ParseUint(s, 16, 32)
	if err != nil {
		return noParentCID
	}
	return uint32(n)
}

func newCID() uint32 {
	var b [4]byte
	_, _ = rand.Read(b[:])
	// The two highest values mean "no parent" and "not yet written".
	return binary.LittleEndian.Uint32(b[:]) & 0x7fffffff
}

// newDiskUUID begins as VMware's disk UUIDs do.
func newDiskUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[0], b[1], b[2], b[3] = 0x60, 0x00, 0xc2, 0x90|b[3]&0x0f
	return shownUUID(hex.EncodeToString(b[:]))
}

func uuidDigits(uuid string) string {
	return strings.ToLower(strings.Map(func(r rune) rune {
		if strings.ContainsRune("0123456789abcdefABCDEF", r) {
			return r
		}
		return -1
	}, uuid))
}

// shownUUID is the form of backing.uuid: 6000c29a-….
func shownUUID(uuid string) string {
	h := uuidDigits(uuid)
	if len(h) != 32 {
		return ""
	}
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// writtenUUID is the form of ddb.uuid and of QueryVirtualDiskUuid: 60 00 C2 9a … .
func writtenUUID(uuid string) string {
	h := uuidDigits(uuid)
	if len(h) != 32 {
		return uuid
	}
	var b strings.Builder
	for i := 0; i < 32; i += 2 {
		switch {
		case i == 16:
			b.WriteByte('-')
		case i > 0:
			b.WriteByte(' ')
		}
		b.WriteString(h[i : i+2])
	}
	return b.String()
}
