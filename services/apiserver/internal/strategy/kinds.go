package strategy

import "k8s.io/apimachinery/pkg/runtime/schema"

// kinds has a row per kind with rules of its own.
func kinds(Config) map[schema.GroupKind]Strategy {
	return map[schema.GroupKind]Strategy{
		{Kind: "Namespace"}: namespaceStrategy{},
	}
}
