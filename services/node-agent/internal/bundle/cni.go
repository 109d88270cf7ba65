package bundle

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// BridgeNetwork is a node's pod network: a bridge in the node's network namespace, and addresses from the node's own range.
type BridgeNetwork struct {
	// Name tells the network from those of other nodes of this machine; libcni keeps results by it in a folder that all share.
	Name string
	// Bridge is the interface's name, "cni0".
	Bridge string
	// PodCIDR is the node's range. Its first address becomes the bridge's, and pods' gateway.
	PodCIDR netip.Prefix
	// MTU of pods' interfaces; 0 leaves it to the kernel.
	MTU int
	// DataDir keeps reservations, see Runtime.CNIDataDir.
	DataDir string
}

// Write puts the network's configuration into a CNI configuration folder, where containerd notices it at once.
func (n BridgeNetwork) Write(confDir string) error {
	if n.Name == "" || strings.ContainsAny(n.Name, "/ ") || n.Bridge == "" || n.DataDir == "" {
		return fmt.Errorf("pod network %q: Name, Bridge and DataDir are required, and Name is part of file names", n.Name)
	}
	if !n.PodCIDR.IsValid() || n.PodCIDR.Masked() != n.PodCIDR {
		return fmt.Errorf("pod network %s: PodCIDR %s is not a network", n.Name, n.PodCIDR)
	}
	everywhere := "0.0.0.0/0"
	if n.PodCIDR.Addr().Is6() {
		everywhere = "::/0"
	}
	bridge := map[string]any{
		"type": "bridge", "bridge": n.Bridge, "isGateway": true, "ipMasq": false,
		// A pod that is behind a Service must reach itself through it.
		"hairpinMode": true,
		"ipam": map[string]any{
			"type": "host-local", "dataDir": n.DataDir,
			"ranges": [][]map[string]string{{{"subnet": n.PodCIDR.String()}}},
			"routes": []map[string]string{{"dst": everywhere}},
		},
	}
	if n.MTU > 0 {
		bridge["mtu"] = n.MTU
	}
	data, err := json.MarshalIndent(map[string]any{
		"cniVersion": "1.0.0", "name": n.Name,
		"plugins": []any{bridge, map[string]any{"type": "portmap", "backend": "nftables", "capabilities": map[string]bool{"portMappings": true}}},
	}, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(confDir, "10-dhow.conflist"), data)
}

// networkNames are those of the configurations in the folder.
func networkNames(confDir string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(confDir, "*.conf*"))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		var network struct {
			Name string `json:"name"`
		}
		if json.Unmarshal(data, &network) == nil && network.Name != "" {
			names = append(names, network.Name)
		}
	}
	return names, nil
}
