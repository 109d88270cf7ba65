package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
)

// How often a target's portals are tried, as Kubernetes tries them: as long as there is one path, for a second one; and at least twice for those beyond two.
const (
	enoughPaths     = 2
	fewAttempts     = 2
	allAttempts     = 5
	iscsiPort       = "3260"
	defaultIscsiWay = "default"
)

// Codes with which iscsiadm(8) says that there is nothing to undo, or that it was done already.
const (
	iscsiNoSession  = 2
	iscsiExists     = 15
	iscsiNoneToFind = 21
)

// Keys of a Secret with CHAP credentials; they are those of iscsiadm.
var (
	chapDiscovery = []string{"discovery.sendtargets.auth.username", "discovery.sendtargets.auth.password", "discovery.sendtargets.auth.username_in", "discovery.sendtargets.auth.password_in"}
	chapSession   = []string{"node.session.auth.username", "node.session.auth.password", "node.session.auth.username_in", "node.session.auth.password_in"}
)

// iscsiTarget is a disk of a target, and the way to it.
type iscsiTarget struct {
	Portals []string `json:"portals"`
	IQN     string   `json:"iqn"`
	LUN     int32    `json:"lun"`
	// Interface is the initiator's interface that is logged in through. With an initiator name of the volume's own it is a copy of From that has that name.
	Interface     string `json:"interface"`
	From          string `json:"from"`
	InitiatorName string `json:"initiatorName,omitempty"`

	chapDiscovery, chapSession bool
}

type iscsiDisks struct{ disks }

func (m *Manager) iscsi(d *described, source *corev1.ISCSIPersistentVolumeSource) *mounting {
	t := &iscsiTarget{
		Portals: []string{portal(source.GetTargetPortal())}, IQN: source.GetIqn(), LUN: source.GetLun(), Interface: source.GetIscsiInterface(), InitiatorName: source.GetInitiatorName(),
		chapDiscovery: source.GetChapAuthDiscovery(), chapSession: source.GetChapAuthSession(),
	}
	for _, p := range source.GetPortals() {
		if p = portal(p); !slices.Contains(t.Portals, p) {
			t.Portals = append(t.Portals, p)
		}
	}
	if t.Interface == "" {
		t.Interface = defaultIscsiWay
	}
	t.From = t.Interface
	if t.InitiatorName != "" {
		t.Interface = t.Portals[0] + ":" + d.name
	}
	v := m.mounting(d, kindISCSI, filepath.Join("iface-"+t.Interface, fmt.Sprintf("%s-%s-lun-%d", t.Portals[0], t.IQN, t.LUN)))
	v.record.ISCSI, v.fsType, v.readOnly, v.group = t, source.GetFsType(), v.readOnly || source.GetReadOnly(), true
	if t.chapDiscovery || t.chapSession {
		v.secretRef = source.GetSecretRef()
	}
	return v
}

// portal adds the port to a portal that names none.
func portal(text string) string {
	if address, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		return net.JoinHostPort(address.String(), iscsiPort)
	}
	if !strings.Contains(text, ":") {
		return text + ":" + iscsiPort
	}
	return text
}

// iscsiadm runs the program. What it says of a failure does not repeat the arguments, which may be secret.
func iscsiadm(ctx context.Context, what string, arguments ...string) (string, error) {
	command := exec.CommandContext(ctx, "iscsiadm", arguments...)
	command.WaitDelay = patience
	out, err := command.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return "", errors.New("this node has no iscsiadm: install the package open-iscsi of Debian, Ubuntu and SUSE, or iscsi-initiator-utils of Fedora and Red Hat")
	}
	if err != nil {
		return "", fmt.Errorf("iscsi: %s: %w: %s", what, err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// ended says whether a program has ended with one of some codes.
func ended(err error, codes ...int) bool {
	var exit *exec.ExitError
	return errors.As(err, &exit) && slices.Contains(codes, exit.ExitCode())
}

func (i iscsiDisks) attach(ctx context.Context, v *mounting) (string, error) {
	t := v.record.ISCSI
	out, err := iscsiadm(ctx, "read interface "+t.From, "-m", "iface", "-I", t.From, "-o", "show")
	if err != nil {
		return "", err
	}
	settings := ifaceSettings(out)
	transport := settings["iface.transport_name"]
	switch transport {
	case "":
		return "", fmt.Errorf("iscsi: interface %s names no transport", t.From)
	case "<empty>":
		transport = "tcp"
	}
	if t.InitiatorName != "" {
		if err := t.copyInterface(ctx, settings); err != nil {
			return "", err
		}
	}
	// Two disks of a target share its session: one must not log out while the other logs in.
	defer i.m.lock("iscsi " + t.IQN)()
	paths := map[string]string{}
	var last error
	for attempt := 1; attempt <= allAttempts; attempt++ {
		for _, p := range t.Portals {
			if paths[p] == "" {
				if paths[p], err = i.reach(ctx, v, p, transport); err != nil {
					delete(paths, p)
					last = err
				}
			}
		}
		if len(paths) == len(t.Portals) || len(paths) == 0 || len(paths) >= enoughPaths && attempt >= fewAttempts || ctx.Err() != nil {
			break
		}
	}
	if len(paths) == 0 {
		if t.InitiatorName != "" {
			_, err := iscsiadm(ctx, "delete interface "+t.Interface, "-m", "iface", "-I", t.Interface, "-o", "delete")
			if err != nil && !ended(err, iscsiNoSession, iscsiNoneToFind) {
				last = errors.Join(last, err)
			}
		}
		return "", fmt.Errorf("failed to get any path for iscsi disk, last err seen: %w", last)
	}
	within := multipathWithin
	if len(t.Portals) == 1 {
		within = 0 // one look: there may be one by chance, but nothing to wait for
	}
	device := await(ctx, within, func() string {
		for _, p := range slices.Sorted(maps.Values(paths)) {
			if joint := i.m.multipathOf(p); joint != "" {
				return joint
			}
		}
		return ""
	})
	if device == "" {
		device = slices.Sorted(maps.Values(paths))[0]
	}
	return device, nil
}

// ifaceSettings reads what iscsiadm shows of an interface.
func ifaceSettings(text string) map[string]string {
	all := map[string]string{}
	for line := range strings.Lines(text) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), " = "); ok && strings.HasPrefix(key, "iface.") {
			all[key] = value
		}
	}
	return all
}

// copyInterface makes an interface like another one, with the volume's initiator name.
func (t *iscsiTarget) copyInterface(ctx context.Context, settings map[string]string) error {
	if _, err := iscsiadm(ctx, "make interface "+t.Interface, "-m", "iface", "-I", t.Interface, "-o", "new"); err != nil && !ended(err, iscsiExists) {
		return err
	}
	settings = maps.Clone(settings)
	settings["iface.initiatorname"] = t.InitiatorName
	for _, key := range slices.Sorted(maps.Keys(settings)) {
		if key == "iface.iscsi_ifacename" || settings[key] == "<empty>" {
			continue
		}
		if _, err := iscsiadm(ctx, "set "+key+" of interface "+t.Interface, "-m", "iface", "-I", t.Interface, "-o", "update", "-n", key, "-v", settings[key]); err != nil {
			_, undone := iscsiadm(ctx, "delete interface "+t.Interface, "-m", "iface", "-I", t.Interface, "-o", "delete")
			return errors.Join(err, undone)
		}
	}
	return nil
}

// reach logs in through a portal, unless that is done, and returns the device that the disk is then.
func (i iscsiDisks) reach(ctx context.Context, v *mounting, portal, transport string) (string, error) {
	t := v.record.ISCSI
	hosts, err := i.hosts(t.IQN)
	if err != nil {
		return "", err
	}
	if _, in := hosts[portal]; !in {
		if err := t.login(ctx, portal, v.secret); err != nil {
			return "", err
		}
		if hosts, err = i.hosts(t.IQN); err != nil {
			return "", err
		}
		if _, in := hosts[portal]; !in {
			return "", fmt.Errorf("iscsi: logged in at portal %s, but the kernel has no session with it", portal)
		}
	}
	// Channel and target are always 0. Only this disk is looked for: the target may have others, which are nothing of this node's.
	if err := os.WriteFile(i.m.sys("class/scsi_host", hosts[portal], "scan"), fmt.Appendf(nil, "0 0 %d", t.LUN), 0); err != nil {
		return "", fmt.Errorf("iscsi: look for disk %d: %w", t.LUN, err)
	}
	name := fmt.Sprintf("ip-%s-iscsi-%s-lun-%d", strings.NewReplacer("[", "", "]", "").Replace(portal), t.IQN, t.LUN)
	path := await(ctx, deviceWithin, func() string {
		entries, _ := os.ReadDir(i.m.dev("disk/by-path")) // which comes with the first device
		for _, e := range entries {
			// A transport of an adapter's own has the adapter's address before the name.
			if e.Name() == name || transport != "tcp" && strings.HasPrefix(e.Name(), "pci-") && strings.HasSuffix(e.Name(), "-"+name) {
				found := i.m.dev("disk/by-path", e.Name())
				if _, err := os.Stat(found); err == nil {
					return found
				}
			}
		}
		return ""
	})
	if path == "" {
		return "", fmt.Errorf("iscsi: timed out waiting for device at path %s after %s", i.m.dev("disk/by-path", name), deviceWithin)
	}
	return filepath.EvalSymlinks(path)
}

// login discovers a target at a portal and logs in there.
func (t *iscsiTarget) login(ctx context.Context, portal string, secret map[string]string) error {
	discovery := []string{"-m", "discoverydb", "-t", "sendtargets", "-p", portal, "-I", t.Interface}
	node := []string{"-m", "node", "-p", portal, "-T", t.IQN, "-I", t.Interface}
	update := func(what string, of []string, key, value string) error {
		_, err := iscsiadm(ctx, "set "+key+" of "+what, slices.Concat(of, []string{"-o", "update", "-n", key, "-v", value})...)
		return err
	}
	authenticate := func(what string, of []string, method string, keys []string) error {
		if err := update(what, of, method, "CHAP"); err != nil {
			return err
		}
		for _, key := range keys {
			if secret[key] == "" {
				continue
			}
			if err := update(what, of, key, secret[key]); err != nil {
				return err
			}
		}
		return nil
	}
	// A record that is there already is as good; one that could not be made is missed by the next step.
	_, made := iscsiadm(ctx, "note portal "+portal, slices.Concat(discovery, []string{"-o", "new"})...)
	if t.chapDiscovery {
		if err := authenticate("discovery at "+portal, discovery, "discovery.sendtargets.auth.authmethod", chapDiscovery); err != nil {
			return errors.Join(made, err)
		}
	}
	if _, err := iscsiadm(ctx, "discover targets at portal "+portal, slices.Concat(discovery, []string{"--discover"})...); err != nil {
		_, undone := iscsiadm(ctx, "forget portal "+portal, slices.Concat(discovery, []string{"-o", "delete"})...)
		return errors.Join(made, err, undone)
	}
	// Initiators that do not know the setting look for all disks of the target, as they always did.
	_ = update("target "+t.IQN, node, "node.session.scan", "manual")
	if t.chapSession {
		if err := authenticate("target "+t.IQN, node, "node.session.auth.authmethod", chapSession); err != nil {
			return err
		}
	}
	if _, err := iscsiadm(ctx, "log in to "+t.IQN+" at portal "+portal, slices.Concat(node, []string{"--login"})...); err != nil && !ended(err, iscsiExists) {
		_, undone := iscsiadm(ctx, "forget target "+t.IQN, slices.Concat(node, []string{"-o", "delete"})...)
		return errors.Join(err, undone)
	}
	// A machine that starts again must not wait for the target. That this fails is no reason to do without the disk.
	_, _ = iscsiadm(ctx, "set startup of "+t.IQN, "-m", "node", "-p", portal, "-T", t.IQN, "-o", "update", "-n", "node.startup", "-v", "manual")
	return nil
}

// session is a session of the kernel's with a target: the SCSI host that it is, its folder, and its portals.
type session struct {
	host, dir string
	portals   []string
}

// sessions returns the kernel's sessions with a target.
func (i iscsiDisks) sessions(iqn string) ([]session, error) {
	names, err := filepath.Glob(i.m.sys("class/iscsi_host/host*/device/session*/iscsi_session/session*/targetname"))
	if err != nil {
		return nil, err
	}
	var all []session
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil || strings.TrimSpace(string(text)) != iqn {
			continue // of another target, or gone meanwhile
		}
		dir := filepath.Dir(filepath.Dir(filepath.Dir(name)))
		s := session{dir: dir, host: filepath.Base(filepath.Dir(filepath.Dir(dir)))}
		connections, err := filepath.Glob(filepath.Join(dir, "connection*/iscsi_connection/connection*"))
		if err != nil {
			return nil, err
		}
		for _, c := range connections {
			for _, prefix := range []string{"", "persistent_"} {
				address, err1 := os.ReadFile(filepath.Join(c, prefix+"address"))
				port, err2 := os.ReadFile(filepath.Join(c, prefix+"port"))
				if err1 == nil && err2 == nil {
					s.portals = append(s.portals, net.JoinHostPort(strings.TrimSpace(string(address)), strings.TrimSpace(string(port))))
				}
			}
		}
		all = append(all, s)
	}
	return all, nil
}

// hosts returns the SCSI hosts that sessions with a target are, by portal.
func (i iscsiDisks) hosts(iqn string) (map[string]string, error) {
	all, err := i.sessions(iqn)
	hosts := map[string]string{}
	for _, s := range all {
		for _, p := range s.portals {
			hosts[p] = s.host
		}
	}
	return hosts, err
}

func (i iscsiDisks) detach(ctx context.Context, r *mountRecord) error {
	t := r.ISCSI
	defer i.m.lock("iscsi " + t.IQN)()
	others, err := i.m.otherMounts(r)
	if err != nil {
		return err
	}
	of := func(same func(*iscsiTarget) bool) bool {
		return slices.ContainsFunc(others, func(o *mountRecord) bool { return o.ISCSI != nil && o.ISCSI.IQN == t.IQN && same(o.ISCSI) })
	}
	if !of(func(o *iscsiTarget) bool { return o.LUN == t.LUN }) {
		if err := i.removeDisk(ctx, t); err != nil {
			return err
		}
	}
	if of(func(o *iscsiTarget) bool { return o.Portals[0] == t.Portals[0] }) {
		return nil // another disk of the target needs the session
	}
	for _, p := range t.Portals {
		node := []string{"-m", "node", "-p", p, "-T", t.IQN}
		if _, err := iscsiadm(ctx, "log out of "+t.IQN+" at portal "+p, slices.Concat(node, []string{"--logout", "-I", t.Interface})...); err != nil && !ended(err, iscsiNoSession, iscsiNoneToFind) {
			return err
		}
		if _, err := iscsiadm(ctx, "forget target "+t.IQN, slices.Concat(node, []string{"-o", "delete", "-I", t.Interface})...); err != nil && !ended(err, iscsiNoSession, iscsiNoneToFind) {
			return err
		}
	}
	if t.InitiatorName != "" {
		if _, err := iscsiadm(ctx, "delete interface "+t.Interface, "-m", "iface", "-I", t.Interface, "-o", "delete"); err != nil && !ended(err, iscsiNoSession, iscsiNoneToFind) {
			return err
		}
	}
	return nil
}

// removeDisk takes the devices that a disk is, and what joins them, from the kernel.
func (i iscsiDisks) removeDisk(ctx context.Context, t *iscsiTarget) error {
	all, err := i.sessions(t.IQN)
	if err != nil {
		return err
	}
	var names []string
	for _, s := range all {
		number := strings.TrimPrefix(s.host, "host")
		entries, err := os.ReadDir(filepath.Join(s.dir, "target"+number+":0:0", number+":0:0:"+strconv.Itoa(int(t.LUN)), "block"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
	}
	joints := map[string]bool{}
	for _, name := range names {
		if joint := i.m.joint(name); joint != "" {
			joints[joint] = true
		}
	}
	for _, joint := range slices.Sorted(maps.Keys(joints)) {
		if _, err := run(ctx, "multipath", "-f", joint); err != nil {
			return err
		}
	}
	for _, name := range names {
		if err := i.m.removeDevice(name); err != nil {
			return err
		}
	}
	return nil
}
