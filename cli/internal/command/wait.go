package command

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/util/jsonpath"

	"dhow.dev/cli/internal/structs"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/object"
)

func newWait(s *session) *cobra.Command {
	var condition, labels string
	var all bool
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "wait KIND/NAME... --for=(condition=TYPE[=STATUS] | delete | create | jsonpath='{PATH}'[=VALUE])",
		Short: "Wait until objects are as they should be",
		Example: `  dhow wait --for=condition=Ready pod/web-0 --timeout=60s
  dhow wait --for=delete pod/web-0
  dhow wait --for=jsonpath='{.status.phase}'=Running pod/web-0`,
		RunE: func(c *cobra.Command, args []string) error {
			check, err := parseFor(condition)
			if err != nil {
				return err
			}
			return s.wait(c.Context(), args, labels, all, timeout, check)
		},
	}
	c.Flags().StringVar(&condition, "for", "", "what to wait for")
	c.Flags().StringVarP(&labels, "selector", "l", "", "wait for the objects with these labels")
	c.Flags().BoolVar(&all, "all", false, "wait for all objects of the kind in the namespace")
	c.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "how long to wait; 0: look once; negative: a week")
	c.MarkFlagRequired("for")
	return c
}

// check says whether an object, nil when it does not exist, is as it should be.
type check struct {
	// absent: the object need not exist at the start.
	absent bool
	met    func(object.Object) (bool, error)
}

func parseFor(text string) (check, error) {
	kind, rest, _ := strings.Cut(text, "=")
	switch strings.ToLower(kind) {
	case "delete":
		return check{absent: true, met: func(o object.Object) (bool, error) { return o == nil, nil }}, nil
	case "create":
		return check{absent: true, met: func(o object.Object) (bool, error) { return o != nil, nil }}, nil
	case "condition":
		name, status, found := strings.Cut(rest, "=")
		if !found {
			status = "true"
		}
		if name == "" {
			break
		}
		return check{met: func(o object.Object) (bool, error) { return conditionIs(o, name, status) }}, nil
	case "jsonpath":
		return parseJSONPath(rest)
	}
	return check{}, fmt.Errorf("unrecognized condition: %q: use condition=TYPE[=STATUS], delete, create, or jsonpath='{PATH}'[=VALUE]", text)
}

// conditionIs looks a condition up in the object's status, as of its newest generation.
func conditionIs(o object.Object, name, want string) (bool, error) {
	if o == nil {
		return false, nil
	}
	found, err := structs.From(o)
	if err != nil {
		return false, err
	}
	encoded, err := json.Marshal(found)
	if err != nil {
		return false, err
	}
	var status struct {
		Metadata struct {
			Generation int64 `json:"generation"`
		} `json:"metadata"`
		Status struct {
			ObservedGeneration *int64 `json:"observedGeneration"`
			Conditions         []struct {
				Type               string `json:"type"`
				Status             string `json:"status"`
				ObservedGeneration *int64 `json:"observedGeneration"`
			} `json:"conditions"`
		} `json:"status"`
	}
	if err := json.Unmarshal(encoded, &status); err != nil {
		return false, err
	}
	for _, c := range status.Status.Conditions {
		if !strings.EqualFold(c.Type, name) {
			continue
		}
		observed := c.ObservedGeneration
		if observed == nil {
			observed = status.Status.ObservedGeneration
		}
		if observed != nil && *observed < status.Metadata.Generation {
			return false, nil
		}
		return strings.EqualFold(c.Status, want), nil
	}
	return false, nil
}

func parseJSONPath(text string) (check, error) {
	text = strings.Trim(text, "'\"")
	path, want, hasWant := text, "", false
	if end := strings.LastIndex(text, "}"); end >= 0 {
		path = text[:end+1]
		want, hasWant = strings.CutPrefix(text[end+1:], "=")
	}
	if !strings.HasPrefix(path, "{") {
		path = "{" + strings.TrimPrefix(path, "{") + "}"
	}
	parser := jsonpath.New("wait").AllowMissingKeys(true)
	if err := parser.Parse(path); err != nil {
		return check{}, fmt.Errorf("--for=jsonpath=%s: %w", path, err)
	}
	want = strings.Trim(want, "'\"")
	return check{met: func(o object.Object) (bool, error) {
		if o == nil {
			return false, nil
		}
		found, err := structs.From(o)
		if err != nil {
			return false, err
		}
		encoded, err := json.Marshal(found)
		if err != nil {
			return false, err
		}
		var value any
		if err := json.Unmarshal(encoded, &value); err != nil {
			return false, err
		}
		var out bytes.Buffer
		if err := parser.Execute(&out, value); err != nil {
			return false, err
		}
		if !hasWant {
			return out.Len() > 0, nil
		}
		return out.String() == want, nil
	}}, nil
}

func (s *session) wait(ctx context.Context, args []string, labels string, all bool, timeout time.Duration, c check) error {
	named, err := targets(args)
	if err != nil {
		return err
	}
	var list []located
	for _, t := range named {
		switch {
		case t.name != "":
			list = append(list, located{t, s.namespaceOf(t.resource)})
		case labels == "" && !all:
			return errors.New("name objects, or use -l or --all")
		default:
			found, err := client.Dynamic(s.conn, t.resource).List(ctx, metav1.ListRequest_builder{Namespace: s.namespaceOf(t.resource), LabelSelector: labels}.Build())
			if err != nil {
				return err
			}
			for _, m := range found.Items {
				list = append(list, located{target{t.resource, object.KeyOf(m).Name}, object.KeyOf(m).Namespace})
			}
		}
	}
	if len(list) == 0 {
		return errors.New("no matching resources found: check the namespace and the selector")
	}
	if timeout < 0 {
		timeout = 7 * 24 * time.Hour
	}
	var errs []error
	ctx, cancel := withTimeout(ctx, timeout)
	defer cancel()
	for _, l := range list {
		if err := s.waitOne(ctx, l, timeout == 0, c); err != nil {
			errs = append(errs, err)
			continue
		}
		fmt.Fprintf(s.Out, "%s condition met\n", l.target)
	}
	return errors.Join(errs...)
}

func (s *session) waitOne(ctx context.Context, l located, once bool, c check) error {
	first := true
	return s.follow(ctx, l, func(o object.Object) (bool, error) {
		if o == nil && !c.absent {
			if first {
				return false, notFound(l)
			}
			return false, fmt.Errorf("%s was deleted while it was waited for", l.target)
		}
		first = false
		met, err := c.met(o)
		if err == nil && !met && once {
			err = fmt.Errorf("condition not met for %s", l.target)
		}
		return met, err
	})
}
