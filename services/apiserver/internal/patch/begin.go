package patch

import (
	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/codec"
)

// Begin defaults an object that is about to be created and gives it its managedFields: all of it is the manager's, defaults too, as in Kubernetes.
func (p *Patcher) Begin(res *resource.Resource, obj codec.Object, manager string) error {
	m, err := p.managers.get(res, "")
	if err != nil {
		return err
	}
	p.managers.strategies.For(res).Default(obj)
	none := p.codec.New(res)
	codec.SetKind(res, none)
	codec.SetKind(res, obj)
	defer codec.ClearKind(obj)
	m.UpdateNoErrors(none, obj, manager)
	return nil
}
