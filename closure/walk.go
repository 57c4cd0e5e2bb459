package closure

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// A Closure is a set of store paths that holds the references of its members.
type Closure struct {
	Roots []nix.StorePath
	Paths []nix.StorePath // roots and all that they refer to; sorted

	infos map[nix.StorePath]*nix.PathInfo // as far as known
}

// Walk finds the closure of roots in src: with one question where src can answer
// it, else breadth first, one question for each level. The error wraps
// nix.ErrNotValid and names the path if one is missing in src.
func Walk(ctx context.Context, src Source, roots []nix.StorePath) (*Closure, error) {
	c := &Closure{Roots: roots, infos: make(map[nix.StorePath]*nix.PathInfo)}
	var err error
	switch s := src.(type) {
	case ClosureInfoSource:
		var infos []*nix.PathInfo
		infos, err = s.Closure(ctx, roots)
		c.learn(infos)
	case ClosurePathSource:
		c.Paths, err = s.ClosurePaths(ctx, roots)
		if err == nil && len(c.Paths) > nix.MaxClosurePaths {
			err = fmt.Errorf("%w: it has %d paths, more than %d", nix.ErrClosureTooLarge, len(c.Paths), nix.MaxClosurePaths)
		}
	default:
		err = c.walk(ctx, src)
	}
	if err != nil {
		return nil, err
	}
	slices.SortFunc(c.Paths, nix.StorePath.Compare)
	return c, c.checkRoots()
}

// WalkOutputs is Walk where the valid outputs of derivations belong to the closure,
// too. They do in the answers of a ClosurePathSource that was told so.
func WalkOutputs(ctx context.Context, src Source, roots []nix.StorePath) (*Closure, error) {
	c, err := Walk(ctx, src, roots)
	outputs, ok := src.(OutputSource)
	for err == nil && ok {
		var found []nix.StorePath
		if found, err = outputs.ValidOutputs(ctx, derivations(c.Paths)); err != nil {
			return nil, err
		}
		if found = without(found, c.Paths); len(found) == 0 {
			break
		}
		c, err = Walk(ctx, src, append(found, c.Roots...))
	}
	if err != nil {
		return nil, err
	}
	c.Roots = roots
	return c, nil
}

func derivations(paths []nix.StorePath) []nix.StorePath {
	var drvs []nix.StorePath
	for _, p := range paths {
		if p.IsDerivation() {
			drvs = append(drvs, p)
		}
	}
	return drvs
}

// Info returns what is known of a path of the closure, or nil.
func (c *Closure) Info(p nix.StorePath) *nix.PathInfo { return c.infos[p] }

// learn adds paths and what is known of them.
func (c *Closure) learn(infos []*nix.PathInfo) {
	for _, info := range infos {
		c.infos[info.Path] = info
		c.Paths = append(c.Paths, info.Path)
	}
}

func (c *Closure) walk(ctx context.Context, src Source) error {
	seen := make(map[nix.StorePath]bool)
	level := unseen(seen, c.Roots)
	var budget nix.ClosureBudget
	for len(level) > 0 {
		infos, err := src.PathInfos(ctx, level)
		for _, info := range infos {
			if err == nil {
				err = budget.Add(info.MemorySize())
			}
		}
		if err != nil {
			return err
		}
		c.learn(infos)
		if err := c.checkKnown(level); err != nil {
			return err
		}
		level = nil
		for _, info := range infos {
			level = append(level, unseen(seen, info.References)...)
		}
	}
	return nil
}

// unseen returns those of paths that are not in seen, and puts them there.
func unseen(seen map[nix.StorePath]bool, paths []nix.StorePath) []nix.StorePath {
	var fresh []nix.StorePath
	for _, p := range paths {
		if !seen[p] {
			seen[p] = true
			fresh = append(fresh, p)
		}
	}
	return fresh
}

// checkKnown returns an error if the source did not know one of paths.
func (c *Closure) checkKnown(paths []nix.StorePath) error {
	for _, p := range paths {
		if c.infos[p] == nil {
			return fmt.Errorf("%s: %w in the source", p, nix.ErrNotValid)
		}
	}
	return nil
}

func (c *Closure) checkRoots() error {
	for _, root := range c.Roots {
		if _, found := slices.BinarySearchFunc(c.Paths, root, nix.StorePath.Compare); !found {
			return fmt.Errorf("%s: %w in the source", root, nix.ErrNotValid)
		}
	}
	return nil
}

// A CycleError says that store paths refer to each other in a circle, which no
// store can register.
type CycleError struct {
	Paths []nix.StorePath // each refers to the next, the last to the first
}

func (e *CycleError) Error() string {
	names := make([]string, len(e.Paths))
	for i, p := range e.Paths {
		names[i] = p.String()
	}
	return "reference cycle: " + strings.Join(names, " → ") + " → " + names[0]
}

// Sort brings infos into an order in which references come before their
// referrers; among those that are free, the order of infos is kept. References to
// paths outside infos and to the path itself do not matter.
func Sort(infos []*nix.PathInfo) ([]*nix.PathInfo, error) {
	nodes := make([]node, len(infos))
	s := sorter{byPath: make(map[nix.StorePath]*node, len(infos)), order: make([]*nix.PathInfo, 0, len(infos))}
	for i, info := range infos {
		nodes[i].info = info
		s.byPath[info.Path] = &nodes[i]
	}
	for _, info := range infos {
		if err := s.visitFrom(s.byPath[info.Path]); err != nil {
			return nil, err
		}
	}
	return s.order, nil
}

type visit int

const (
	open   visit = iota + 1 // on the stack
	closed                  // in the order
)

type node struct {
	info  *nix.PathInfo
	state visit
	next  int // reference to look at
}

// A sorter walks depth first with a stack of its own, as a chain of references may
// be as long as the closure.
type sorter struct {
	byPath map[nix.StorePath]*node
	stack  []*node
	order  []*nix.PathInfo
}

func (s *sorter) visitFrom(n *node) error {
	s.push(n)
	for len(s.stack) > 0 {
		top := s.stack[len(s.stack)-1]
		if top.next == len(top.info.References) {
			top.state = closed
			s.order = append(s.order, top.info)
			s.stack = s.stack[:len(s.stack)-1]
			continue
		}
		target := s.byPath[top.info.References[top.next]]
		top.next++
		if target == nil || target == top {
			continue
		}
		if target.state == open {
			return s.cycle(target)
		}
		s.push(target)
	}
	return nil
}

func (s *sorter) push(n *node) {
	if n.state == 0 {
		n.state = open
		s.stack = append(s.stack, n)
	}
}

// cycle names the paths on the stack from n on.
func (s *sorter) cycle(n *node) error {
	var paths []nix.StorePath
	for i := len(s.stack) - 1; i >= 0; i-- {
		paths = append(paths, s.stack[i].info.Path)
		if s.stack[i] == n {
			break
		}
	}
	slices.Reverse(paths)
	return &CycleError{paths}
}
