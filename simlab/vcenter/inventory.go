package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Inventory is the file given by --inventory: everything that is there when
// the program begins to listen. See docs/simlab-vcenter.md.
type Inventory struct {
	Datacenter  string             `json:"datacenter"`
	TaskSeconds float64            `json:"task_seconds"`
	Hosts       []hostEntry        `json:"hosts"`
	Datastores  []datastoreEntry   `json:"datastores"`
	VMs         []vmEntry          `json:"vms"`
	Users       []userEntry        `json:"users"`
	Licences    map[string]licence `json:"licences"`
}

type hostEntry struct {
	Name        string `json:"name"`
	Licence     string `json:"licence"`
	MemoryBytes int64  `json:"memory_bytes"`
	Connected   *bool  `json:"connected"`
	Maintenance bool   `json:"maintenance"`
}

type datastoreEntry struct {
	Name          string `json:"name"`
	Type          string `json:"type"`
	Directory     string `json:"directory"`
	CapacityBytes int64  `json:"capacity_bytes"`
	Accessible    *bool  `json:"accessible"`
	// Hosts names the hosts that mount it and how; none named: all, read-write.
	Hosts map[string]string `json:"hosts"`
}

type vmEntry struct {
	Name         string            `json:"name"`
	UUID         string            `json:"uuid"`
	InstanceUUID string            `json:"instance_uuid"`
	Host         string            `json:"host"`
	Folder       string            `json:"folder"`
	Datastore    string            `json:"datastore"`
	GuestID      string            `json:"guest_id"`
	Power        string            `json:"power"`
	Tools        string            `json:"tools"`
	MemoryBytes  int64             `json:"memory_bytes"`
	CPUs         int32             `json:"cpus"`
	ExtraConfig  map[string]string `json:"extra_config"`
	Controllers  []string          `json:"controllers"`
	Disks        []diskEntry       `json:"disks"`
	Snapshots    []snapshotEntry   `json:"snapshots"`
}

type diskEntry struct {
	Path       string `json:"path"`
	Controller string `json:"controller"`
	SizeBytes  int64  `json:"size_bytes"`
	UUID       string `json:"uuid"`
	Thin       *bool  `json:"thin"`
	Mode       string `json:"mode"`
}

type snapshotEntry struct {
	Name        string          `json:"name"`
	Description string          `json:"description"`
	Memory      bool            `json:"memory"`
	Children    []snapshotEntry `json:"children"`
}

type userEntry struct {
	Name       string   `json:"name"`
	Password   string   `json:"password"`
	Role       string   `json:"role"`
	Privileges []string `json:"privileges"`
}

type licence struct {
	Edition string `json:"edition"`
	Name    string `json:"name"`
	Key     string `json:"key"`
}

// Editions as vSphere's LicenseManager names them; an inventory may add others.
var knownLicences = map[string]licence{
	"evaluation":      {"eval", "Evaluation Mode", "00000-00000-00000-00000-00000"},
	"free":            {"esxBasic", "VMware vSphere 8 Hypervisor", "FREE0-00000-00000-00000-00000"},
	"standard":        {"esx.standard.cpuPackage", "VMware vSphere 8 Standard", "STAND-00000-00000-00000-00000"},
	"enterprise-plus": {"esx.enterprisePlus.cpuPackage", "VMware vSphere 8 Enterprise Plus", "ENTPL-00000-00000-00000-00000"},
}

var (
	datastoreTypes  = []string{"VMFS", "vsan", "NFS", "NFS41", "OTHER"}
	accessModes     = []string{"readWrite", "readOnly"}
	powerStates     = []string{"on", "off"}
	roles           = []string{"admin", "readonly", "custom", "none"}
	diskControllers = []string{"lsilogic", "lsilogic-sas", "buslogic", "pvscsi", "ide", "sata", "nvme"}
)

func readInventory(path string) (*Inventory, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	inv := &Inventory{}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields() // a mistyped key would otherwise silently be the default
	if err := decoder.Decode(inv); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if err := inv.complete(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return inv, nil
}

// complete fills in what was left out and refuses what cannot be meant.
func (inv *Inventory) complete(base string) error {
	fallback(&inv.Datacenter, "DC")
	if inv.TaskSeconds < 0 {
		return fmt.Errorf("task_seconds is %v, expected 0 or more", inv.TaskSeconds)
	}
	if len(inv.Hosts) == 0 {
		return fmt.Errorf("there is no host")
	}
	licences := map[string]licence{}
	for name, l := range knownLicences {
		licences[name] = l
	}
	for name, l := range inv.Licences {
		licences[name] = l
	}
	inv.Licences = licences

	hosts, datastores := []string{}, []string{}
	for i := range inv.Hosts {
		h := &inv.Hosts[i]
		fallback(&h.Licence, "evaluation")
		if h.MemoryBytes == 0 {
			h.MemoryBytes = 64 << 30
		}
		if _, ok := licences[h.Licence]; !ok {
			return fmt.Errorf("host %q: there is no licence %q", h.Name, h.Licence)
		}
		if err := named("host", h.Name, &hosts); err != nil {
			return err
		}
	}
	for i := range inv.Datastores {
		if err := inv.Datastores[i].complete(base, hosts, &datastores); err != nil {
			return err
		}
	}
	for i := range inv.VMs {
		if err := inv.VMs[i].complete(hosts, datastores); err != nil {
			return err
		}
	}
	users := []string{}
	for i := range inv.Users {
		u := &inv.Users[i]
		if len(u.Privileges) > 0 {
			fallback(&u.Role, "custom")
		}
		fallback(&u.Role, "admin")
		if err := among("user "+u.Name+": role", u.Role, roles); err != nil {
			return err
		}
		if err := named("user", u.Name, &users); err != nil {
			return err
		}
	}
	return nil
}

func (d *datastoreEntry) complete(base string, hosts []string, seen *[]string) error {
	fallback(&d.Type, "VMFS")
	if d.CapacityBytes == 0 {
		d.CapacityBytes = 1 << 40
	}
	if err := named("datastore", d.Name, seen); err != nil {
		return err
	}
	if strings.ContainsAny(d.Name, "[]/") {
		return fmt.Errorf("datastore %q: a name holds no [, ] or /", d.Name)
	}
	if err := among("datastore "+d.Name+": type", d.Type, datastoreTypes); err != nil {
		return err
	}
	if d.Directory == "" {
		return fmt.Errorf("datastore %q has no directory", d.Name)
	}
	if !filepath.IsAbs(d.Directory) {
		d.Directory = filepath.Join(base, d.Directory)
	}
	directory, err := filepath.Abs(d.Directory)
	if err != nil {
		return fmt.Errorf("datastore %q: %w", d.Name, err)
	}
	d.Directory = directory
	if err := os.MkdirAll(d.Directory, 0o755); err != nil {
		return fmt.Errorf("datastore %q: %w", d.Name, err)
	}
	if d.Hosts == nil {
		d.Hosts = map[string]string{}
		for _, h := range hosts {
			d.Hosts[h] = "readWrite"
		}
	}
	for host, mode := range d.Hosts {
		if err := among("datastore "+d.Name+": host", host, hosts); err != nil {
			return err
		}
		if err := among("datastore "+d.Name+": access mode", mode, accessModes); err != nil {
			return err
		}
	}
	return nil
}

func (v *vmEntry) complete(hosts, datastores []string) error {
	if v.Name == "" {
		return fmt.Errorf("a VM has no name")
	}
	fallback(&v.Host, hosts[0])
	fallback(&v.Power, "off")
	fallback(&v.Tools, "running")
	fallback(&v.GuestID, "debian12_64Guest")
	if v.MemoryBytes == 0 {
		v.MemoryBytes = 1 << 30
	}
	if v.CPUs == 0 {
		v.CPUs = 1
	}
	if v.Datastore == "" && len(datastores) > 0 {
		v.Datastore = datastores[0]
	}
	checks := []struct {
		what, value string
		known       []string
	}{
		{"host", v.Host, hosts},
		{"datastore", v.Datastore, datastores},
		{"power", v.Power, powerStates},
		{"tools", v.Tools, toolsNames()},
	}
	for _, c := range v.Controllers {
		checks = append(checks, struct {
			what, value string
			known       []string
		}{"controller", c, diskControllers})
	}
	for i := range v.Disks {
		fallback(&v.Disks[i].Controller, "lsilogic")
		checks = append(checks, struct {
			what, value string
			known       []string
		}{"disk controller", v.Disks[i].Controller, diskControllers})
	}
	for _, c := range checks {
		if err := among("VM "+v.Name+": "+c.what, c.value, c.known); err != nil {
			return err
		}
	}
	return nil
}

func fallback(s *string, value string) {
	if *s == "" {
		*s = value
	}
}

func named(what, name string, seen *[]string) error {
	if name == "" {
		return fmt.Errorf("a %s has no name", what)
	}
	if slices.Contains(*seen, name) {
		return fmt.Errorf("two %ss are called %q", what, name)
	}
	*seen = append(*seen, name)
	return nil
}

func among(what, value string, known []string) error {
	if !slices.Contains(known, value) {
		return fmt.Errorf("%s is %q, expected one of %s", what, value, strings.Join(known, ", "))
	}
	return nil
}
