// Package sbom tells what a Go program is made of, as a CycloneDX 1.6 document, from what the Go linker wrote into it.
package sbom

import (
	"bytes"
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"runtime/debug"
	"strings"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

// Of returns the document of programs that make up one image, indented JSON. It holds no time and no serial number: the same programs give the
// same bytes. name and version are the image's.
func Of(name, version string, programs ...string) ([]byte, error) {
	doc := cdx.NewBOM()
	doc.Metadata = &cdx.Metadata{Component: &cdx.Component{BOMRef: name, Type: cdx.ComponentTypeContainer, Name: name, Version: version}}
	var components []cdx.Component
	seen := map[string]bool{}
	for _, program := range programs {
		info, err := buildinfo.ReadFile(program)
		if err != nil {
			return nil, fmt.Errorf("%s: what it is made of is not in it: %w", program, err)
		}
		modules := append([]*debug.Module{{Path: "stdlib", Version: strings.TrimPrefix(info.GoVersion, "go")}}, info.Deps...)
		for _, module := range modules {
			component, ok, err := of(module)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", program, err)
			}
			if ok && !seen[component.BOMRef] {
				seen[component.BOMRef] = true
				components = append(components, component)
			}
		}
	}
	doc.Components = &components
	var out bytes.Buffer
	if err := cdx.NewBOMEncoder(&out, cdx.BOMFileFormatJSON).SetPretty(true).EncodeVersion(doc, cdx.SpecVersion1_6); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// of returns the component of a module; false for the modules of this repository, which are the image's own.
func of(module *debug.Module) (cdx.Component, bool, error) {
	if module.Replace != nil {
		module = module.Replace
	}
	if strings.HasPrefix(module.Path, "dhow.dev/") || strings.HasPrefix(module.Path, ".") {
		return cdx.Component{}, false, nil
	}
	url := fmt.Sprintf("pkg:golang/%s@%s", module.Path, module.Version)
	component := cdx.Component{BOMRef: url, Type: cdx.ComponentTypeLibrary, Name: module.Path, Version: module.Version, PackageURL: url}
	if sum, ok := strings.CutPrefix(module.Sum, "h1:"); ok {
		digest, err := base64.StdEncoding.DecodeString(sum)
		if err != nil {
			return cdx.Component{}, false, fmt.Errorf("module %s: checksum %q: %w", module.Path, module.Sum, err)
		}
		component.Hashes = &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: hex.EncodeToString(digest)}}
	}
	return component, true, nil
}
