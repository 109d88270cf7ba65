package volume

import (
	"errors"
	"fmt"
	"os"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/node-agent/internal/downward"
	"dhow.dev/services/node-agent/internal/env"
)

// defaultMode is Kubernetes' mode of files that name none.
const defaultMode = 0o644

// objects writes a volume made from objects.
func (m *Manager) objects(pod *corev1.Pod, v *corev1.Volume, s Sources) (bool, error) {
	p, inMemory, err := contents(pod, v.GetVolumeSource(), s)
	if err != nil {
		return false, err
	}
	dir := m.objectsDir(pod.GetMetadata().GetUid(), v)
	if inMemory {
		if err := mountMemory(dir, 0, 0o777); err != nil {
			return false, err
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return false, err
	}
	return p.write(dir, fsGroup(pod))
}

// contents computes the files, and whether they are too secret for the disk.
func contents(pod *corev1.Pod, source *corev1.VolumeSource, s Sources) (payload, bool, error) {
	p := payload{}
	namespace := pod.GetMetadata().GetNamespace()
	switch {
	case source.HasConfigMap():
		c := source.GetConfigMap()
		data, err := configMapData(s, namespace, c.GetLocalObjectReference().GetName(), c.GetOptional())
		if err != nil {
			return nil, false, err
		}
		return p, false, p.keys(data, c.GetItems(), modeOf(c.HasDefaultMode(), c.GetDefaultMode()), c.GetOptional())
	case source.HasSecret():
		c := source.GetSecret()
		data, err := secretData(s, namespace, c.GetSecretName(), c.GetOptional())
		if err != nil {
			return nil, true, err
		}
		return p, true, p.keys(data, c.GetItems(), modeOf(c.HasDefaultMode(), c.GetDefaultMode()), c.GetOptional())
	case source.HasDownwardApi():
		c := source.GetDownwardApi()
		return p, false, p.downward(pod, c.GetItems(), modeOf(c.HasDefaultMode(), c.GetDefaultMode()), s.Facts)
	}
	c := source.GetProjected()
	mode, secret := modeOf(c.HasDefaultMode(), c.GetDefaultMode()), false
	for _, part := range c.GetSources() {
		var err error
		var data map[string][]byte
		switch {
		case part.HasConfigMap():
			from := part.GetConfigMap()
			if data, err = configMapData(s, namespace, from.GetLocalObjectReference().GetName(), from.GetOptional()); err == nil {
				err = p.keys(data, from.GetItems(), mode, from.GetOptional())
			}
		case part.HasSecret():
			secret = true
			from := part.GetSecret()
			if data, err = secretData(s, namespace, from.GetLocalObjectReference().GetName(), from.GetOptional()); err == nil {
				err = p.keys(data, from.GetItems(), mode, from.GetOptional())
			}
		case part.HasDownwardApi():
			err = p.downward(pod, part.GetDownwardApi().GetItems(), mode, s.Facts)
		case part.HasServiceAccountToken():
			secret = true
			err = p.token(part.GetServiceAccountToken(), mode, fsGroup(pod) >= 0, s)
		case part.HasClusterTrustBundle():
			err = p.trust(part.GetClusterTrustBundle(), mode, fsGroup(pod) >= 0, s)
		case part.HasPodCertificate():
			// API servers drop it; this one is older than that.
			err = errors.New("projected.sources: podCertificate is off in Kubernetes v1.36 and not supported by the node")
		}
		if err != nil {
			return nil, secret, err
		}
	}
	return p, secret, nil
}

// defaultTokenSeconds is how long a token is valid that names no time.
const defaultTokenSeconds = 60 * 60

// token adds a service account's token. In a pod with an fsGroup only that group may read it beside its owner, as in Kubernetes.
func (p payload) token(from *corev1.ServiceAccountTokenProjection, mode os.FileMode, grouped bool, s Sources) error {
	seconds := int64(defaultTokenSeconds)
	if from.HasExpirationSeconds() {
		seconds = from.GetExpirationSeconds()
	}
	token, err := s.Token(from.GetAudience(), seconds)
	if err != nil {
		return err
	}
	if grouped {
		mode = 0o600
	}
	return p.put(from.GetPath(), file{data: []byte(token), mode: mode})
}

// trust adds certificates of authorities.
func (p payload) trust(from *corev1.ClusterTrustBundleProjection, mode os.FileMode, grouped bool, s Sources) error {
	certificates, err := s.Trust(from)
	if err != nil {
		return err
	}
	if grouped {
		mode = 0o600
	}
	return p.put(from.GetPath(), file{data: certificates, mode: mode})
}

func modeOf(set bool, mode int32) os.FileMode {
	if !set {
		return defaultMode
	}
	return permissions(mode)
}

// permissions converts the mode of an API field, which may have the set-uid, set-gid and sticky bits.
func permissions(mode int32) os.FileMode {
	m := os.FileMode(mode) & os.ModePerm
	for bit, flag := range map[int32]os.FileMode{0o4000: os.ModeSetuid, 0o2000: os.ModeSetgid, 0o1000: os.ModeSticky} {
		if mode&bit != 0 {
			m |= flag
		}
	}
	return m
}

func configMapData(s Sources, namespace, name string, optional bool) (map[string][]byte, error) {
	o, err := s.ConfigMap(name)
	if err != nil {
		if optional && errors.Is(err, env.ErrMissing) {
			return nil, nil
		}
		return nil, fmt.Errorf("configmap \"%s/%s\" %w", namespace, name, err)
	}
	data := map[string][]byte{}
	for k, v := range o.GetBinaryData() {
		data[k] = v
	}
	for k, v := range o.GetData() {
		data[k] = []byte(v)
	}
	return data, nil
}

func secretData(s Sources, namespace, name string, optional bool) (map[string][]byte, error) {
	o, err := s.Secret(name)
	if err != nil {
		if optional && errors.Is(err, env.ErrMissing) {
			return nil, nil
		}
		return nil, fmt.Errorf("secret \"%s/%s\" %w", namespace, name, err)
	}
	return o.GetData(), nil
}

// keys adds an object's keys: those that items name, at their paths, or all.
func (p payload) keys(data map[string][]byte, items []*corev1.KeyToPath, mode os.FileMode, optional bool) error {
	if len(items) == 0 {
		for k, v := range data {
			if err := p.put(k, file{data: v, mode: mode}); err != nil {
				return err
			}
		}
		return nil
	}
	for _, item := range items {
		v, ok := data[item.GetKey()]
		if !ok {
			if optional {
				continue
			}
			return fmt.Errorf("references non-existent key: %s", item.GetKey())
		}
		m := mode
		if item.HasMode() {
			m = permissions(item.GetMode())
		}
		if err := p.put(item.GetPath(), file{data: v, mode: m}); err != nil {
			return err
		}
	}
	return nil
}

func (p payload) downward(pod *corev1.Pod, items []*corev1.DownwardAPIVolumeFile, mode os.FileMode, facts downward.Facts) error {
	for _, item := range items {
		var value string
		var err error
		if item.HasFieldRef() {
			value, err = downward.Field(pod, item.GetFieldRef().GetFieldPath(), facts)
		} else {
			value, err = downward.Resource(pod, "", item.GetResourceFieldRef(), facts)
		}
		if err != nil {
			return err
		}
		m := mode
		if item.HasMode() {
			m = permissions(item.GetMode())
		}
		if err := p.put(item.GetPath(), file{data: []byte(value), mode: m}); err != nil {
			return err
		}
	}
	return nil
}
