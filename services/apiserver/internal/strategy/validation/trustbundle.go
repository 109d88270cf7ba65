package validation

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"

	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// maxTrustBundle is how long a bundle may be, in bytes; Kubernetes' bound.
const maxTrustBundle = 1 << 20

// ClusterTrustBundle looks at a new bundle.
func ClusterTrustBundle(b *certificatesv1beta1.ClusterTrustBundle) field.ErrorList {
	return append(trustBundleName(b), trustAnchors(field.NewPath("spec", "trustBundle"), b.Spec.TrustBundle)...)
}

// ClusterTrustBundleUpdate looks at a changed bundle. Certificates that stay are not looked at again.
func ClusterTrustBundleUpdate(b, old *certificatesv1beta1.ClusterTrustBundle) field.ErrorList {
	if b.Spec.SignerName != old.Spec.SignerName {
		return field.ErrorList{field.Invalid(field.NewPath("spec", "signerName"), b.Spec.SignerName, "field is immutable")}
	}
	if b.Spec.TrustBundle != old.Spec.TrustBundle {
		return trustAnchors(field.NewPath("spec", "trustBundle"), b.Spec.TrustBundle)
	}
	return nil
}

// trustBundleName holds a bundle's name to its signer's: a/b has bundles a:b:NAME, and nobody's have no colon.
func trustBundleName(b *certificatesv1beta1.ClusterTrustBundle) field.ErrorList {
	var errs field.ErrorList
	at, name := field.NewPath("metadata", "name"), b.Name
	if signer := b.Spec.SignerName; signer != "" {
		errs = append(errs, signerName(field.NewPath("spec", "signerName"), signer)...)
		prefix := strings.ReplaceAll(signer, "/", ":") + ":"
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok {
			return append(errs, field.Invalid(at, name, fmt.Sprintf("ClusterTrustBundle for signerName %s must be named with prefix %s", signer, prefix)))
		}
		name = rest
	} else if strings.Contains(name, ":") {
		return append(errs, field.Invalid(at, name, "ClusterTrustBundle without signer name must not have \":\" in its name"))
	}
	for _, problem := range utilvalidation.IsDNS1123Subdomain(name) {
		errs = append(errs, field.Invalid(at, b.Name, problem))
	}
	return errs
}

// trustAnchors looks whether a text is certificates of authorities in PEM, at least one, and each once.
func trustAnchors(at *field.Path, text string) field.ErrorList {
	if len(text) > maxTrustBundle {
		return field.ErrorList{field.TooLong(at, "", maxTrustBundle)}
	}
	var errs field.ErrorList
	wrong := func(format string, arguments ...any) {
		errs = append(errs, field.Invalid(at, "<value omitted>", fmt.Sprintf(format, arguments...)))
	}
	places := map[string][]int{}
	var order []string
	rest := []byte(text)
	for i := 0; ; i++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		switch certificate, err := x509.ParseCertificate(block.Bytes); {
		case block.Type != "CERTIFICATE":
			wrong("entry %d has bad block type: %v", i, block.Type)
		case len(block.Headers) != 0:
			wrong("entry %d has PEM block headers", i)
		case err != nil:
			wrong("entry %d does not parse as X.509", i)
		case !certificate.IsCA:
			wrong("entry %d does not have the CA bit set", i)
		case !certificate.BasicConstraintsValid:
			wrong("entry %d has invalid basic constraints", i)
		default:
			key := string(block.Bytes)
			if places[key] == nil {
				order = append(order, key)
			}
			places[key] = append(places[key], i)
		}
	}
	if len(errs) > 0 {
		return errs
	}
	if len(order) == 0 {
		wrong("at least one trust anchor must be provided")
	}
	for _, key := range order {
		if len(places[key]) > 1 {
			wrong("duplicate trust anchor (indices %v)", places[key])
		}
	}
	return errs
}
