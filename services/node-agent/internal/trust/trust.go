// Package trust has the cluster's bundles of certificates (ClusterTrustBundle) for the volumes that show them. It watches them from the first time that a
// pod asks: most nodes never do.
package trust

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/pem"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	kmetav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	certificatesv1beta1 "dhow.dev/gen/go/dhow/certificates/v1beta1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/informer"
)

// patience is how long the first answer of the API server is waited for.
const patience = 10 * time.Second

// Config configures a Keeper.
type Config struct {
	Conn grpc.ClientConnInterface
	// Pods are those of the node; Changed is told those whose volumes show bundles, when bundles have changed. It must not block.
	Pods    func() []*corev1.Pod
	Changed func(uids []string)
	Logger  *slog.Logger
}

// Keeper knows the bundles.
type Keeper struct {
	config  Config
	objects *informer.Informer
	bundles *informer.Store[*certificatesv1beta1.ClusterTrustBundle]
	needed  chan struct{}
	once    sync.Once
}

// New returns a keeper; Run lets it watch.
func New(config Config) *Keeper {
	k := &Keeper{config: config, objects: informer.New(config.Conn, config.Logger), needed: make(chan struct{})}
	k.bundles = informer.Add[*certificatesv1beta1.ClusterTrustBundle](k.objects, informer.Options[*certificatesv1beta1.ClusterTrustBundle]{})
	k.bundles.OnChange(func(_, _ *certificatesv1beta1.ClusterTrustBundle) {
		var uids []string
		for _, p := range config.Pods() {
			if Shows(p) {
				uids = append(uids, p.GetMetadata().GetUid())
			}
		}
		if len(uids) > 0 {
			config.Changed(uids)
		}
	})
	return k
}

// Shows says whether a pod has a volume that shows bundles.
func Shows(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.GetSpec().GetVolumes(), func(v *corev1.Volume) bool {
		return slices.ContainsFunc(v.GetVolumeSource().GetProjected().GetSources(), (*corev1.VolumeProjection).HasClusterTrustBundle)
	})
}

// Run watches bundles once they are needed, until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-k.needed:
		return k.objects.Run(ctx)
	}
}

// Get returns the certificates that a volume asks for, in PEM, each once and in an order of its own.
func (k *Keeper) Get(ctx context.Context, from *corev1.ClusterTrustBundleProjection) ([]byte, error) {
	k.once.Do(func() { close(k.needed) })
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := k.objects.WaitForSync(ctx); err != nil {
		return nil, fmt.Errorf("bundles of certificates are not known yet: %w", err)
	}
	if name := from.GetName(); from.HasName() {
		b, ok := k.bundles.Get("", name)
		if !ok {
			if from.GetOptional() {
				return nil, nil
			}
			return nil, fmt.Errorf("clustertrustbundle %q not found", name)
		}
		return normalized(b.GetSpec().GetTrustBundle()), nil
	}
	selector, err := selectorOf(from.GetLabelSelector())
	if err != nil {
		return nil, err
	}
	var texts []string
	for _, b := range k.bundles.List() {
		if b.GetSpec().GetSignerName() == from.GetSignerName() && selector.Matches(labels.Set(b.GetMetadata().GetLabels())) {
			texts = append(texts, b.GetSpec().GetTrustBundle())
		}
	}
	if len(texts) == 0 && !from.GetOptional() {
		return nil, fmt.Errorf("combination of signerName %q and labelSelector matched zero ClusterTrustBundles", from.GetSignerName())
	}
	return normalized(texts...), nil
}

// selectorOf converts a selector of labels: none matches nothing, an empty one everything.
func selectorOf(s *metav1.LabelSelector) (labels.Selector, error) {
	if s == nil {
		return labels.Nothing(), nil
	}
	converted := &kmetav1.LabelSelector{MatchLabels: s.GetMatchLabels()}
	for _, e := range s.GetMatchExpressions() {
		converted.MatchExpressions = append(converted.MatchExpressions, kmetav1.LabelSelectorRequirement{Key: e.GetKey(), Operator: kmetav1.LabelSelectorOperator(e.GetOperator()), Values: e.GetValues()})
	}
	selector, err := kmetav1.LabelSelectorAsSelector(converted)
	if err != nil {
		return nil, fmt.Errorf("labelSelector: %w", err)
	}
	return selector, nil
}

// normalized returns the certificates of bundles without comments, each once, in an order that says nothing of theirs.
func normalized(texts ...string) []byte {
	blocks := map[[sha256.Size]byte][]byte{}
	for _, text := range texts {
		rest := []byte(text)
		for {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			blocks[sha256.Sum256(block.Bytes)] = pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes})
		}
	}
	var keys [][sha256.Size]byte
	for key := range blocks {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(a, b [sha256.Size]byte) int { return bytes.Compare(a[:], b[:]) })
	var all []byte
	for _, key := range keys {
		all = append(all, blocks[key]...)
	}
	return all
}
