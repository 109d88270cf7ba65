// Package dockerfile reads the Dockerfiles of this repository's own images as image.Spec, so that a machine without docker, buildah or BuildKit
// makes the same images that those make. They start FROM scratch and run nothing, which is what can be read without a container runtime: any
// other instruction is an error that names its line.
package dockerfile

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/command"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"dhow.dev/pkg/image"
)

// Build is what `docker build` gets: the folder that COPY reads from, and the values of ARG.
type Build struct {
	Context string
	Args    map[string]string
}

// Read returns the image that the Dockerfile describes. An ARG without a value or a default is an error: it would be an empty label.
func Read(file string, build Build) (image.Spec, error) {
	source, err := os.Open(file)
	if err != nil {
		return image.Spec{}, err
	}
	defer source.Close()
	parsed, err := parser.Parse(source)
	if err != nil {
		return image.Spec{}, fmt.Errorf("%s: %w", file, err)
	}
	r := &reader{build: build, lex: shell.NewLex(parsed.EscapeToken), spec: image.Spec{Labels: map[string]string{}}}
	for _, node := range parsed.AST.Children {
		if err := r.instruction(node); err != nil {
			return image.Spec{}, fmt.Errorf("%s:%d: %s: %w", file, node.StartLine, strings.ToUpper(node.Value), err)
		}
	}
	return r.spec, nil
}

type reader struct {
	build Build
	lex   *shell.Lex
	args  []string // NAME=value
	spec  image.Spec
}

func (r *reader) instruction(node *parser.Node) error {
	words, err := r.words(node)
	if err != nil {
		return err
	}
	if len(words) == 0 {
		return fmt.Errorf("expected an argument")
	}
	if len(node.Flags) > 0 && !strings.EqualFold(node.Value, command.Copy) {
		return fmt.Errorf("flags are not read: %v", node.Flags)
	}
	switch strings.ToLower(node.Value) {
	case command.From:
		if len(words) != 1 || words[0] != "scratch" {
			return fmt.Errorf("%s: images begin with scratch", strings.Join(words, " "))
		}
	case command.Arg:
		for _, word := range words {
			name, value, hasDefault := strings.Cut(word, "=")
			if given, ok := r.build.Args[name]; ok {
				value = given
			} else if !hasDefault {
				return fmt.Errorf("%s has no value", name)
			}
			r.args = append(r.args, name+"="+value)
		}
	case command.Label:
		// The parser makes a name, a value and a separator of each pair.
		for i := 0; i+2 < len(words)+1; i += 3 {
			r.spec.Labels[words[i]] = words[i+1]
		}
	case command.Env:
		for i := 0; i+2 < len(words)+1; i += 3 {
			r.spec.Env = append(r.spec.Env, words[i]+"="+words[i+1])
		}
	case command.User:
		r.spec.User = words[0]
	case command.Workdir:
		r.spec.WorkingDir = words[0]
	case command.StopSignal:
		r.spec.StopSignal = words[0]
	case command.Expose:
		r.spec.ExposedPorts = append(r.spec.ExposedPorts, words...)
	case command.Entrypoint:
		if !node.Attributes["json"] {
			return fmt.Errorf("write it as a list: there is no shell in the image")
		}
		r.spec.Entrypoint = words
	case command.Cmd:
		if !node.Attributes["json"] {
			return fmt.Errorf("write it as a list: there is no shell in the image")
		}
		r.spec.Cmd = words
	case command.Copy:
		return r.copy(node.Flags, words)
	default:
		return fmt.Errorf("not read here: these images copy files and run nothing")
	}
	return nil
}

// words are an instruction's arguments with ARG's values put in. In a list nothing is replaced, as docker does it.
func (r *reader) words(node *parser.Node) ([]string, error) {
	var words []string
	for n := node.Next; n != nil; n = n.Next {
		word := n.Value
		if !node.Attributes["json"] {
			var err error
			if word, _, err = r.lex.ProcessWord(word, shell.EnvsFromSlice(r.args)); err != nil {
				return nil, err
			}
		}
		words = append(words, word)
	}
	return words, nil
}

// copy takes a file, or what is in a folder, from the context.
func (r *reader) copy(flags, words []string) error {
	uid, gid := 0, 0
	for _, flag := range flags {
		owner, ok := strings.CutPrefix(flag, "--chown=")
		if !ok {
			return fmt.Errorf("%s: only --chown=UID:GID is read", flag)
		}
		user, group, _ := strings.Cut(owner, ":")
		var errUser, errGroup error
		uid, errUser = strconv.Atoi(user)
		gid, errGroup = strconv.Atoi(group)
		if errUser != nil || errGroup != nil {
			return fmt.Errorf("%s: expected numbers, UID:GID", flag)
		}
	}
	if len(words) != 2 {
		return fmt.Errorf("expected one source and one target, got %d words", len(words))
	}
	source, target := filepath.Join(r.build.Context, words[0]), path.Clean(words[1])
	info, err := os.Stat(source)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		if strings.HasSuffix(words[1], "/") {
			target = path.Join(target, filepath.Base(source))
		}
		r.spec.Files = append(r.spec.Files, image.File{Path: target, Source: source, Mode: info.Mode().Perm(), UID: uid, GID: gid})
		return nil
	}
	return filepath.WalkDir(source, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(source, file)
		if err != nil {
			return err
		}
		f := image.File{Path: path.Join(target, filepath.ToSlash(relative)), UID: uid, GID: gid}
		switch {
		case f.Path == "/":
			return nil
		case entry.IsDir():
			f.Dir = true
		case entry.Type()&fs.ModeSymlink != 0:
			if f.Link, err = os.Readlink(file); err != nil {
				return err
			}
		default:
			f.Source = file
		}
		if f.Link == "" {
			info, err := entry.Info()
			if err != nil {
				return err
			}
			f.Mode = info.Mode().Perm()
		}
		r.spec.Files = append(r.spec.Files, f)
		return nil
	})
}
