// Package env computes a container's environment from all its sources, in Kubernetes' order: envFrom, then env (later wins), and service
// variables where nothing else has the name.
package env

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/node-agent/internal/downward"
)

// ErrMissing says that a ConfigMap or Secret does not exist. Sources return it, wrapped.
var ErrMissing = errors.New("not found")

// Sources is where values come from.
type Sources struct {
	Pod   *corev1.Pod
	Facts downward.Facts
	// Services are those that the pod sees as variables; see Services.
	Services []*corev1.Service
	// ConfigMap and Secret return an object of the pod's namespace, or ErrMissing.
	ConfigMap func(name string) (*corev1.ConfigMap, error)
	Secret    func(name string) (*corev1.Secret, error)
	// File reads a file of one of the pod's volumes, at most MaxFile and a byte of it, or returns fs.ErrNotExist.
	File func(volume, path string) ([]byte, error)
}

// Variable is one variable.
type Variable struct {
	Name, Value string
}

// Of returns the environment of one of the pod's containers, in a stable order. Its errors are what Kubernetes calls CreateContainerConfigError.
func Of(c *corev1.Container, s Sources) ([]Variable, error) {
	values := map[string]string{}
	var order []string
	set := func(name, value string) {
		if _, known := values[name]; !known {
			order = append(order, name)
		}
		values[name] = value
	}
	for _, from := range c.GetEnvFrom() {
		if err := s.from(from, set); err != nil {
			return nil, err
		}
	}
	services := ServiceVariables(s.Services)
	for _, e := range c.GetEnv() {
		value, ok, err := s.value(c, e, func(name string) (string, bool) {
			if v, known := values[name]; known {
				return v, true
			}
			v, known := services[name]
			return v, known
		})
		if err != nil {
			return nil, err
		}
		if ok {
			set(e.GetName(), value)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(services)) {
		if _, known := values[name]; !known {
			set(name, services[name])
		}
	}
	list := make([]Variable, len(order))
	for i, name := range order {
		list[i] = Variable{Name: name, Value: values[name]}
	}
	return list, nil
}

// from sets all keys of a ConfigMap or Secret.
func (s Sources) from(from *corev1.EnvFromSource, set func(name, value string)) error {
	switch {
	case from.HasConfigMapRef():
		name := from.GetConfigMapRef().GetLocalObjectReference().GetName()
		o, err := s.ConfigMap(name)
		if err != nil {
			if errors.Is(err, ErrMissing) && from.GetConfigMapRef().GetOptional() {
				return nil
			}
			return fmt.Errorf("configmap %q %w", name, err)
		}
		for _, k := range slices.Sorted(maps.Keys(o.GetData())) {
			set(from.GetPrefix()+k, o.GetData()[k])
		}
	case from.HasSecretRef():
		name := from.GetSecretRef().GetLocalObjectReference().GetName()
		o, err := s.Secret(name)
		if err != nil {
			if errors.Is(err, ErrMissing) && from.GetSecretRef().GetOptional() {
				return nil
			}
			return fmt.Errorf("secret %q %w", name, err)
		}
		for _, k := range slices.Sorted(maps.Keys(o.GetData())) {
			set(from.GetPrefix()+k, string(o.GetData()[k]))
		}
	}
	return nil
}

// value returns a variable's value; ok is false when an optional source does not have it.
func (s Sources) value(c *corev1.Container, e *corev1.EnvVar, lookup func(string) (string, bool)) (value string, ok bool, err error) {
	from := e.GetValueFrom()
	switch {
	case !e.HasValueFrom():
		return Expand(e.GetValue(), lookup), true, nil
	case from.HasFieldRef():
		value, err = downward.Field(s.Pod, from.GetFieldRef().GetFieldPath(), s.Facts)
	case from.HasResourceFieldRef():
		value, err = downward.Resource(s.Pod, c.GetName(), from.GetResourceFieldRef(), s.Facts)
	case from.HasConfigMapKeyRef():
		ref := from.GetConfigMapKeyRef()
		name := ref.GetLocalObjectReference().GetName()
		o, err := s.ConfigMap(name)
		if err != nil {
			if errors.Is(err, ErrMissing) && ref.GetOptional() {
				return "", false, nil
			}
			return "", false, fmt.Errorf("configmap %q %w", name, err)
		}
		value, found := o.GetData()[ref.GetKey()]
		if !found {
			if ref.GetOptional() {
				return "", false, nil
			}
			return "", false, fmt.Errorf("couldn't find key %v in ConfigMap %v/%v", ref.GetKey(), s.Pod.GetMetadata().GetNamespace(), name)
		}
		return value, true, nil
	case from.HasSecretKeyRef():
		ref := from.GetSecretKeyRef()
		name := ref.GetLocalObjectReference().GetName()
		o, err := s.Secret(name)
		if err != nil {
			if errors.Is(err, ErrMissing) && ref.GetOptional() {
				return "", false, nil
			}
			return "", false, fmt.Errorf("secret %q %w", name, err)
		}
		value, found := o.GetData()[ref.GetKey()]
		if !found {
			if ref.GetOptional() {
				return "", false, nil
			}
			return "", false, fmt.Errorf("couldn't find key %v in Secret %v/%v", ref.GetKey(), s.Pod.GetMetadata().GetNamespace(), name)
		}
		return string(value), true, nil
	case from.HasFileKeyRef():
		ref := from.GetFileKeyRef()
		data, err := s.File(ref.GetVolumeName(), ref.GetPath())
		if errors.Is(err, fs.ErrNotExist) && ref.GetOptional() {
			return "", false, nil
		}
		found := false
		if err == nil {
			value, found, err = fileVariable(data, ref.GetKey())
		}
		if err != nil {
			return "", false, fmt.Errorf("env %q: file %q of volume %q: %w", e.GetName(), ref.GetPath(), ref.GetVolumeName(), err)
		}
		if !found && !ref.GetOptional() {
			return "", false, fmt.Errorf("env %q: couldn't find key %q in file %q of volume %q", e.GetName(), ref.GetKey(), ref.GetPath(), ref.GetVolumeName())
		}
		return value, found, nil
	default:
		return "", false, fmt.Errorf("env %q: valueFrom has no source that this node supports", e.GetName())
	}
	if err != nil {
		return "", false, fmt.Errorf("env %q: %w", e.GetName(), err)
	}
	return value, true, nil
}

// Expand replaces $(NAME) by what lookup knows. Unknown names stay as they are; $$ stands for one $.
func Expand(text string, lookup func(string) (string, bool)) string {
	if !strings.Contains(text, "$") {
		return text
	}
	var b strings.Builder
	for i := 0; i < len(text); {
		if text[i] != '$' || i+1 == len(text) {
			b.WriteByte(text[i])
			i++
			continue
		}
		switch text[i+1] {
		case '$':
			b.WriteByte('$')
			i += 2
		case '(':
			end := strings.IndexByte(text[i:], ')')
			if end < 0 {
				b.WriteString(text[i : i+2])
				i += 2
				continue
			}
			name := text[i+2 : i+end]
			if v, known := lookup(name); known {
				b.WriteString(v)
			} else {
				b.WriteString(text[i : i+end+1])
			}
			i += end + 1
		default:
			b.WriteString(text[i : i+2])
			i += 2
		}
	}
	return b.String()
}

// ExpandAll expands a command or its arguments with the finished environment.
func ExpandAll(texts []string, variables []Variable) []string {
	values := make(map[string]string, len(variables))
	for _, v := range variables {
		values[v.Name] = v.Value
	}
	lookup := func(name string) (string, bool) {
		v, ok := values[name]
		return v, ok
	}
	list := make([]string, len(texts))
	for i, t := range texts {
		list[i] = Expand(t, lookup)
	}
	return list
}

// VisibleServices returns the services that a pod sees as variables: those of its namespace if enableServiceLinks, and the API server's always.
func VisibleServices(pod *corev1.Pod, all []*corev1.Service) []*corev1.Service {
	namespace := pod.GetMetadata().GetNamespace()
	links := !pod.GetSpec().HasEnableServiceLinks() || pod.GetSpec().GetEnableServiceLinks()
	visible := map[string]*corev1.Service{}
	for _, s := range all {
		if ip := s.GetSpec().GetClusterIp(); ip == "" || ip == "None" {
			continue
		}
		m := s.GetMetadata()
		switch {
		case m.GetNamespace() == namespace && links:
			visible[m.GetName()] = s // one's own namespace wins over default/kubernetes
		case m.GetNamespace() == "default" && m.GetName() == "kubernetes" && visible["kubernetes"] == nil:
			visible["kubernetes"] = s
		}
	}
	list := make([]*corev1.Service, 0, len(visible))
	for _, name := range slices.Sorted(maps.Keys(visible)) {
		list = append(list, visible[name])
	}
	return list
}

// ServiceVariables returns {NAME}_SERVICE_HOST and its siblings, those of Docker links among them.
func ServiceVariables(services []*corev1.Service) map[string]string {
	values := map[string]string{}
	for _, s := range services {
		ports := s.GetSpec().GetPorts()
		if len(ports) == 0 {
			continue
		}
		name := variableName(s.GetMetadata().GetName())
		ip := s.GetSpec().GetClusterIp()
		values[name+"_SERVICE_HOST"] = ip
		values[name+"_SERVICE_PORT"] = strconv.Itoa(int(ports[0].GetPort()))
		for i, p := range ports {
			port := strconv.Itoa(int(p.GetPort()))
			if p.GetName() != "" {
				values[name+"_SERVICE_PORT_"+variableName(p.GetName())] = port
			}
			protocol := "TCP"
			if p.GetProtocol() != "" {
				protocol = p.GetProtocol()
			}
			url := strings.ToLower(protocol) + "://" + net.JoinHostPort(ip, port)
			if i == 0 {
				values[name+"_PORT"] = url
			}
			prefix := name + "_PORT_" + port + "_" + strings.ToUpper(protocol)
			values[prefix] = url
			values[prefix+"_PROTO"] = strings.ToLower(protocol)
			values[prefix+"_PORT"] = port
			values[prefix+"_ADDR"] = ip
		}
	}
	return values
}

func variableName(name string) string {
	return strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}
