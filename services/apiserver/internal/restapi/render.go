package restapi

import (
	"encoding/json"
	"net/http"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"

	"dhow.dev/pkg/resource"
	"dhow.dev/pkg/table"
	"dhow.dev/services/apiserver/internal/codec"
	"dhow.dev/services/apiserver/internal/request"
	"dhow.dev/services/apiserver/internal/respond"
)

// The transformations of meta.k8s.io.
const (
	asTable        = "Table"
	asMetadata     = "PartialObjectMetadata"
	asMetadataList = "PartialObjectMetadataList"
	metaVersion    = metav1.GroupName + "/v1"
)

// version is one object at one revision on its way to a client.
type version interface {
	// Encoded is the object's protobuf, with its resource version.
	Encoded() []byte
	// Text is the same as JSON.
	Text(encode func(*resource.Resource, []byte) ([]byte, error)) ([]byte, error)
}

// fresh is a version that nobody shares: a write's answer, or an object with what is not stored.
type fresh struct {
	resource *resource.Resource
	data     []byte
}

func (f fresh) Encoded() []byte { return f.data }

func (f fresh) Text(encode func(*resource.Resource, []byte) ([]byte, error)) ([]byte, error) {
	return encode(f.resource, f.data)
}

// encodeStored makes the JSON of a stored object, with kind and version first, in one line without end.
func (d *Door) encodeStored(r *resource.Resource, data []byte) ([]byte, error) {
	o, err := d.config.Codec.DecodeProto(r, data)
	if err != nil {
		return nil, err
	}
	return d.marshal(r, o)
}

func (d *Door) marshal(r *resource.Resource, o runtime.Object) ([]byte, error) {
	o.GetObjectKind().SetGroupVersionKind(r.GroupVersionKind())
	return json.Marshal(o)
}

// rendering is how one request's objects are shown.
type rendering struct {
	door *Door
	// row is the kind that the answer carries.
	row     *resource.Resource
	form    respond.Form
	include metav1.IncludeObjectPolicy
}

// rendering negotiates the form of an answer. Lists say so: their metadata has another kind.
func (d *Door) rendering(r *http.Request, info *request.Info, as ...string) (*rendering, error) {
	form, err := respond.Negotiate(r, as...)
	if err != nil {
		return nil, err
	}
	p := &rendering{door: d, row: carried(info), form: form, include: metav1.IncludeMetadata}
	if form.As == asTable {
		var o metav1.TableOptions
		if err := parameters(info.Query, &o, metav1.Convert_url_Values_To_v1_TableOptions); err != nil {
			return nil, err
		}
		if errs := metavalidation.ValidateTableOptions(&o); len(errs) > 0 {
			return nil, apierrors.NewBadRequest(errs.ToAggregate().Error())
		}
		if o.IncludeObject != "" {
			p.include = o.IncludeObject
		}
	}
	return p, nil
}

// object decodes a version.
func (p *rendering) object(v version) (codec.Object, error) {
	return p.door.config.Codec.DecodeProto(p.row, v.Encoded())
}

// text is a version as compact JSON.
func (p *rendering) text(v version) ([]byte, error) {
	switch {
	case p.form.As == asTable:
		t, err := p.table(true, v)
		if err != nil {
			return nil, err
		}
		if t.ResourceVersion, err = resourceVersion(v); err != nil {
			return nil, err
		}
		return json.Marshal(t)
	case p.form.As != "":
		m, err := metadata(v)
		if err != nil {
			return nil, err
		}
		return json.Marshal(m)
	}
	return v.Text(p.door.encode)
}

// raw is a version as protobuf, without envelope, and the type that the envelope says.
func (p *rendering) raw(v version) (data []byte, apiVersion, kind string) {
	if p.form.As != "" {
		return onlyMetadata(v.Encoded()), metaVersion, asMetadata
	}
	return v.Encoded(), p.row.APIVersion(), p.row.Kind
}

// one writes the answer that is one object.
func (p *rendering) one(w http.ResponseWriter, r *http.Request, code int, v version) {
	if p.form.Media == respond.Protobuf {
		data, apiVersion, kind := p.raw(v)
		respond.Write(w, r, code, p.form.Media.ContentType(), respond.Envelope(apiVersion, kind, len(data)), data, []byte(respond.EnvelopeTail))
		return
	}
	text, err := p.text(v)
	if err == nil && (p.form.Media == respond.YAML || p.form.Pretty) {
		if text, err = respond.Dress(p.form, text); err == nil {
			respond.Write(w, r, code, p.form.Media.ContentType(), text)
			return
		}
	}
	if err != nil {
		respond.Error(w, r, err)
		return
	}
	respond.Write(w, r, code, p.form.Media.ContentType(), text, newline)
}

var newline = []byte("\n")

// metadata decodes nothing but an object's metadata.
func metadata(v version) (*metav1.PartialObjectMetadata, error) {
	m := &metav1.PartialObjectMetadata{}
	if err := m.Unmarshal(onlyMetadata(v.Encoded())); err != nil {
		return nil, err
	}
	m.TypeMeta = metav1.TypeMeta{Kind: asMetadata, APIVersion: metaVersion}
	return m, nil
}

func resourceVersion(v version) (string, error) {
	m, err := metadata(v)
	if err != nil {
		return "", err
	}
	return m.ResourceVersion, nil
}

// metadataField is the number of metadata in every kind and list, itemsField that of items in every list.
const (
	metadataField = 1
	itemsField    = 2
)

// onlyMetadata copies the metadata fields of an encoded object: what is left is an encoded PartialObjectMetadata.
func onlyMetadata(data []byte) []byte {
	var out []byte
	for len(data) > 0 {
		number, _, n := protowire.ConsumeField(data)
		if n < 0 {
			return out // what is stored has been decoded before
		}
		if number == metadataField {
			out = append(out, data[:n]...)
		}
		data = data[n:]
	}
	return out
}

// table makes a table of versions.
func (p *rendering) table(headers bool, versions ...version) (*metav1.Table, error) {
	t := &metav1.Table{TypeMeta: metav1.TypeMeta{Kind: asTable, APIVersion: metaVersion}, Rows: make([]metav1.TableRow, 0, len(versions))}
	if headers {
		t.ColumnDefinitions = table.Columns(p.row)
	}
	now := p.door.config.Now()
	for _, v := range versions {
		o, err := p.object(v)
		if err != nil {
			return nil, err
		}
		rows, err := table.Rows(p.row, o, now)
		if err != nil {
			return nil, err
		}
		for i := range rows {
			switch p.include {
			case metav1.IncludeNone:
			case metav1.IncludeObject:
				if rows[i].Object.Raw, err = p.door.marshal(p.row, o); err != nil {
					return nil, err
				}
			default:
				m, err := metadata(v)
				if err != nil {
					return nil, err
				}
				if rows[i].Object.Raw, err = json.Marshal(m); err != nil {
					return nil, err
				}
			}
		}
		t.Rows = append(t.Rows, rows...)
	}
	return t, nil
}

// page is a list on its way to a client.
type page struct {
	versions []version
	meta     metav1.ListMeta
}

// list writes the answer that is a list.
func (p *rendering) list(w http.ResponseWriter, r *http.Request, l page) {
	var pieces [][]byte
	var err error
	switch {
	case p.form.As == asTable:
		var t *metav1.Table
		if t, err = p.table(true, l.versions...); err == nil {
			t.ListMeta = l.meta
			var body []byte
			body, err = json.Marshal(t)
			pieces = [][]byte{body, newline}
		}
	case p.form.Media == respond.Protobuf:
		pieces, err = p.listRaw(l)
	default:
		pieces, err = p.listText(l)
	}
	if err == nil && p.form.Media != respond.Protobuf && (p.form.Media == respond.YAML || p.form.Pretty) {
		var body []byte
		for _, piece := range pieces {
			body = append(body, piece...)
		}
		if body, err = respond.Dress(p.form, body); err == nil {
			pieces = [][]byte{body}
		}
	}
	if err != nil {
		respond.Error(w, r, err)
		return
	}
	respond.Write(w, r, http.StatusOK, p.form.Media.ContentType(), pieces...)
}

// listKind is the kind of the list and how kind and version of an item begin its JSON, which items of lists do not say.
func (p *rendering) listKind() (apiVersion, kind, prefix string) {
	if p.form.As != "" {
		return metaVersion, asMetadataList, ""
	}
	return p.row.APIVersion(), p.row.Kind + "List", `{"kind":"` + p.row.Kind + `","apiVersion":"` + p.row.APIVersion() + `",`
}

var (
	opening = []byte("{")
	comma   = []byte(",")
)

func (p *rendering) listText(l page) ([][]byte, error) {
	apiVersion, kind, prefix := p.listKind()
	meta, err := json.Marshal(l.meta)
	if err != nil {
		return nil, err
	}
	pieces := make([][]byte, 0, 3*len(l.versions)+2)
	pieces = append(pieces, []byte(`{"kind":"`+kind+`","apiVersion":"`+apiVersion+`","metadata":`+string(meta)+`,"items":[`))
	for i, v := range l.versions {
		text, err := p.text(v)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			pieces = append(pieces, comma)
		}
		if len(text) > len(prefix) && string(text[:len(prefix)]) == prefix {
			pieces = append(pieces, opening, text[len(prefix):])
		} else {
			pieces = append(pieces, text)
		}
	}
	return append(pieces, []byte("]}\n")), nil
}

// spliced is a version that knows itself as an item of a list.
type spliced interface{ Item() []byte }

func (p *rendering) listRaw(l page) ([][]byte, error) {
	apiVersion, kind, _ := p.listKind()
	meta, err := l.meta.Marshal()
	if err != nil {
		return nil, err
	}
	pieces := make([][]byte, 1, len(l.versions)+3)
	pieces = append(pieces, protowire.AppendBytes(protowire.AppendTag(nil, metadataField, protowire.BytesType), meta))
	size := len(pieces[1])
	for _, v := range l.versions {
		var item []byte
		if s, ok := v.(spliced); ok && p.form.As == "" {
			item = s.Item()
		} else {
			data, _, _ := p.raw(v)
			item = protowire.AppendBytes(protowire.AppendTag(nil, itemsField, protowire.BytesType), data)
		}
		size += len(item)
		pieces = append(pieces, item)
	}
	pieces[0] = respond.Envelope(apiVersion, kind, size)
	return append(pieces, []byte(respond.EnvelopeTail)), nil
}

func formatRevision(revision int64) string { return strconv.FormatInt(revision, 10) }
