// Command vcenter-sim is homeward's stand-in for vCenter: govmomi's simulator,
// with what it lacks put right. See docs/simlab-vcenter.md.
package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

type options struct {
	inventory   string
	listen      string
	control     string
	certificate string
	stdin       bool
	stock       bool
	user        string
	password    string
}

func main() {
	log.SetFlags(log.Ltime | log.Lmicroseconds)
	o := options{}
	flag.StringVar(&o.inventory, "inventory", "", "JSON file that says what is there")
	flag.StringVar(&o.listen, "listen", "127.0.0.1:0", "address of the vSphere API; port 0 takes a free one")
	flag.StringVar(&o.control, "control", "127.0.0.1:0", "loopback address of the control port")
	flag.StringVar(&o.certificate, "certificate", "", "file to write the certificate (PEM) to; FILE.sha256 gets its thumbprint")
	flag.BoolVar(&o.stdin, "until-stdin-closes", false, "end when standard input closes")
	flag.BoolVar(&o.stock, "stock", false, "serve govmomi's simulator as it is, with its own model (for comparison)")
	flag.StringVar(&o.user, "user", "", "a further administrator")
	flag.StringVar(&o.password, "password", "", "the password of -user")
	flag.Parse()
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "vcenter-sim:", err)
		os.Exit(2)
	}
}

func run(o options) error {
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	if o.inventory == "" && !o.stock {
		return errors.New("--inventory is missing")
	}
	if host, _, err := net.SplitHostPort(o.control); err != nil || !net.ParseIP(host).IsLoopback() {
		return fmt.Errorf("--control is %q, expected a loopback address with a port", o.control)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	model := simulator.VPX()
	if !o.stock {
		model.Datacenter = 0 // the inventory says what is there
		about := &model.ServiceContent.About
		about.Name, about.FullName = "VMware vCenter Server", "homeward's stand-in for VMware vCenter Server"
		about.Version, about.ApiVersion = "8.0.3", "8.0.3.0" // the simulator's types are of that age, its 6.5 is not
	}
	if err := model.Create(); err != nil {
		return err
	}
	defer model.Remove()
	w := newWorld(model.Service)
	if !o.stock {
		inv, err := readInventory(o.inventory)
		if err != nil {
			return err
		}
		if err := w.build(inv); err != nil {
			return err
		}
		w.tasks.seconds.Store(int64(inv.TaskSeconds * float64(time.Second)))
		w.reg.Handler = w.handle
	}
	if o.user != "" {
		w.addUser(userEntry{Name: o.user, Password: o.password, Role: "admin"})
	}
	return serve(ctx, o, w)
}

func serve(ctx context.Context, o options, w *World) error {
	keys, err := newCertificate()
	if err != nil {
		return err
	}
	if o.certificate != "" {
		if err := keys.write(o.certificate); err != nil {
			return err
		}
	}
	handler := w.endpoints()
	if !o.stock {
		handler = &front{w: w, next: handler}
	}
	server := &http.Server{
		Handler: handler, TLSConfig: keys.config(), ReadHeaderTimeout: 30 * time.Second,
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){}, // no HTTP/2, which could not be cut in mid-call
		ErrorLog:     log.New(io.Discard, "", 0),                               // clients that refuse the certificate are no news
	}
	vcenter := newGate(server, o.listen, true)
	controlServer := &http.Server{Handler: w.control(vcenter), ReadHeaderTimeout: 30 * time.Second}
	control := newGate(controlServer, o.control, false)
	if err := vcenter.open(); err != nil {
		return err
	}
	defer vcenter.shut()
	// The simulator checks passwords only when it knows an address with a user in it.
	w.service.Listen = &url.URL{Scheme: "https", Host: vcenter.address, Path: "/sdk", User: url.User("as in the inventory")}
	manager := w.reg.Get(*w.content().SessionManager).(*simulator.SessionManager)
	manager.ServiceHostName = vcenter.address
	manager.ValidLogin = func(req *types.Login) bool { return w.loginValid(req.UserName, req.Password) }
	if err := control.open(); err != nil {
		return err
	}
	defer control.shut()

	host, port, _ := net.SplitHostPort(vcenter.address)
	ready, err := json.Marshal(map[string]any{
		"url": "https://" + vcenter.address + "/sdk", "host": host, "port": json.Number(port),
		"control": "http://" + control.address, "thumbprint": keys.thumbprint, "pid": os.Getpid(),
		"stock": o.stock,
	})
	if err != nil {
		return err
	}
	fmt.Println(string(ready))

	ended := make(chan struct{})
	if o.stdin {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			close(ended)
		}()
	}
	select {
	case <-ctx.Done():
	case <-ended:
	}
	return nil
}

// endpoints are the simulator's own, without the ones that nobody here asks for.
func (w *World) endpoints() http.Handler {
	s := w.service
	s.RegisterSDK(w.reg, w.reg.Path+"/vimService")
	s.ServeMux.HandleFunc(w.reg.Path+"/vimServiceVersions.xml", s.ServiceVersions)
	s.ServeMux.HandleFunc("/folder/", s.ServeDatastore)
	s.ServeMux.HandleFunc("/about", s.About)
	return s.ServeMux
}
