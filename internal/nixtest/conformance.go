package nixtest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// A StoreUnderTest is what every store that paths are copied to and from can do.
type StoreUnderTest interface {
	// ValidPaths returns those of paths that are valid, in any order.
	ValidPaths(ctx context.Context, paths []nix.StorePath) ([]nix.StorePath, error)
	// PathInfos returns the infos of those of paths that are valid, in any order.
	PathInfos(ctx context.Context, paths []nix.StorePath) ([]*nix.PathInfo, error)
	// Closure returns the closure of roots in any order; the error wraps
	// nix.ErrNotValid where a root is not valid.
	Closure(ctx context.Context, roots []nix.StorePath) ([]*nix.PathInfo, error)
	// WriteNAR's error wraps nix.ErrNotValid where p is not valid.
	WriteNAR(ctx context.Context, w io.Writer, p nix.StorePath) error
	Import(ctx context.Context) (Importer, error)
}

// TestStore checks that a store keeps its promises. open returns an empty store
// with the directory Dir, which asks check before it adds a path where check is
// not nil; it cleans up after the test by itself. After an importer has refused a
// path or its stream broke, the suite asks no more of that importer than Close.
func TestStore(t *testing.T, open func(t *testing.T, check func(*nix.PathInfo) error) StoreUnderTest) {
	for _, test := range []struct {
		name string
		run  func(t *testing.T, s StoreUnderTest)
	}{
		{"empty", testEmpty},
		{"closures", testClosures},
		{"one flush for all", testOneFlush},
		{"add again", testAddAgain},
		{"derivation", testDerivation},
		{"refusals", testRefusals},
		{"broken streams", testBrokenStreams},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, open(t, nil)) })
	}
	t.Run("not trusted", func(t *testing.T) { testNotTrusted(t, open) })
}

func testEmpty(t *testing.T, s StoreUnderTest) {
	p := Chain(1).Top()
	expectValid(t, s, nil, []nix.StorePath{p})
	if infos, err := s.PathInfos(t.Context(), []nix.StorePath{p}); err != nil || len(infos) > 0 {
		t.Errorf("PathInfos = %v, %v; want none", infos, err)
	}
	if _, err := s.Closure(t.Context(), []nix.StorePath{p}); !errors.Is(err, nix.ErrNotValid) {
		t.Errorf("Closure: error is %v, want nix.ErrNotValid", err)
	} else if !strings.Contains(err.Error(), p.Base()) {
		t.Errorf("Closure: error %q does not name %s", err, p)
	}
	if err := s.WriteNAR(t.Context(), io.Discard, p); !errors.Is(err, nix.ErrNotValid) {
		t.Errorf("WriteNAR: error is %v, want nix.ErrNotValid", err)
	}
}

// testClosures adds objects of every kind, each after those before are valid.
func testClosures(t *testing.T, s StoreUnderTest) {
	c := slices.Concat(Chain(3), Diamond(), Random(1, 30), Closure{Flat("flat", "flat\n")})
	im := begin(t, s)
	for _, o := range c {
		if err := addOne(t, im, o); err != nil {
			t.Fatalf("add %s: %v", o.Info.Path, err)
		}
	}
	finish(t, im)
	expectObjects(t, s, c...)
	for _, o := range c {
		infos, err := s.Closure(t.Context(), []nix.StorePath{o.Info.Path})
		if err != nil {
			t.Fatal(err)
		}
		expectPaths(t, "closure of "+o.Info.Path.String(), infosPaths(infos), c.closureOf(o.Info.Path))
	}
}

// testOneFlush adds a whole closure before any of it need be valid.
func testOneFlush(t *testing.T, s StoreUnderTest) {
	c := Random(2, 50)
	im := begin(t, s)
	verdicts := make(chan error, len(c))
	for _, o := range c {
		err := im.Add(t.Context(), cloneInfo(o.Info), bytes.NewReader(o.NAR), func(err error) { verdicts <- err })
		if err != nil {
			t.Fatalf("add %s: %v", o.Info.Path, err)
		}
	}
	if err := im.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range c {
		select {
		case err := <-verdicts:
			if err != nil {
				t.Error(err)
			}
		default:
			t.Fatal("Flush returned before all was decided")
		}
	}
	expectObjects(t, s, c...)
	finish(t, im)
}

// testAddAgain adds what is valid: the stream stays in step and nothing changes.
func testAddAgain(t *testing.T, s StoreUnderTest) {
	c := Chain(3)
	for range 2 {
		im := begin(t, s)
		for _, o := range slices.Concat(c, c[:1]) {
			if err := addOne(t, im, o); err != nil {
				t.Fatalf("add %s: %v", o.Info.Path, err)
			}
		}
		finish(t, im)
	}
	expectObjects(t, s, c...)
}

func testDerivation(t *testing.T, s StoreUnderTest) {
	drv, out := Derivation("fixed", Node{Content: "output\n"})
	im := begin(t, s)
	for _, o := range []Object{drv, out} {
		if err := addOne(t, im, o); err != nil {
			t.Fatalf("add %s: %v", o.Info.Path, err)
		}
	}
	finish(t, im)
	expectObjects(t, s, drv, out)
}

// testRefusals adds paths with something wrong about each, whose streams are whole.
func testRefusals(t *testing.T, s StoreUnderTest) {
	output := func(name string) Object {
		return Output(name, name, func(string) Node { return Node{Content: name} })
	}
	for _, test := range []struct {
		name string
		make func() Object
		want error // nil: any
	}{
		{"wrong hash", func() Object {
			o := output("wrong-hash")
			o.Info.NARHash = output("other").Info.NARHash
			return o
		}, nix.ErrDamaged},
		{"damaged content", func() Object {
			o := output("damaged")
			o.NAR[104] ^= 1 // in the file's bytes
			return o
		}, nix.ErrDamaged},
		{"missing reference", func() Object {
			missing := Chain(1).Top()
			return Output("dangling", "dangling", func(string) Node { return Node{Content: missing.String()} }, missing)
		}, nix.ErrNotValid},
		{"path of another content address", func() Object {
			o := Source("honest", Node{Content: "honest"})
			o.Info.Path = Source("liar", Node{Content: "liar"}).Info.Path
			return o
		}, nil},
		{"content of another content address", func() Object {
			o := Source("honest", Node{Content: "honest"})
			lie := Source("honest", Node{Content: "lie"})
			o.NAR, o.Info.NARHash, o.Info.NARSize = lie.NAR, lie.Info.NARHash, lie.Info.NARSize
			return o
		}, nil},
		{"content address of an unknown kind", func() Object {
			o := output("unknown-address")
			o.Info.CA = "magic:sha256:" + o.Info.NARHash.Nix32()
			return o
		}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := test.make()
			im := begin(t, s)
			err := addOne(t, im, o)
			im.Close() // its error, if any, is the one that we have
			if err == nil || test.want != nil && !errors.Is(err, test.want) {
				t.Errorf("Add: error is %v, want %v", err, test.want)
			}
			expectValid(t, s, nil, []nix.StorePath{o.Info.Path})
		})
	}
}

// testBrokenStreams adds paths whose contents are shorter or longer than announced,
// or no archive; one that is right follows in an importer of its own.
func testBrokenStreams(t *testing.T, s StoreUnderTest) {
	whole := Output("broken", "broken", func(string) Node { return Node{Content: "whole"} })
	noise := newObject(whole.Info.Path, []byte(strings.Repeat("noise ", 20)), "", nil)
	longer := newObject(whole.Info.Path, slices.Concat(whole.NAR, make([]byte, 8)), "", nil)
	for _, test := range []struct {
		name string
		Object
	}{
		{"empty", Object{whole.Info, nil}},
		{"cut", Object{whole.Info, whole.NAR[:len(whole.NAR)-8]}},
		{"no archive", noise},
		{"more behind the archive", longer},
	} {
		t.Run(test.name, func(t *testing.T) {
			im := begin(t, s)
			err := addOne(t, im, test.Object)
			im.Close() // its error, if any, is the one that we have
			if err == nil {
				t.Error("Add succeeded")
			}
			expectValid(t, s, nil, []nix.StorePath{whole.Info.Path})
		})
	}
	im := begin(t, s)
	if err := addOne(t, im, whole); err != nil {
		t.Errorf("add after failures: %v", err)
	}
	finish(t, im)
	expectObjects(t, s, whole)
}

func testNotTrusted(t *testing.T, open func(*testing.T, func(*nix.PathInfo) error) StoreUnderTest) {
	s := open(t, func(info *nix.PathInfo) error {
		if info.CA == "" {
			return nix.ErrNotTrusted
		}
		return nil
	})
	good := Source("good", Node{Content: "good"})
	bad := Output("bad", "bad", func(string) Node { return Node{Content: "bad"} })
	im := begin(t, s)
	if err := addOne(t, im, good); err != nil {
		t.Errorf("add %s: %v", good.Info.Path, err)
	}
	if err := addOne(t, im, bad); !errors.Is(err, nix.ErrNotTrusted) {
		t.Errorf("add %s: error is %v, want nix.ErrNotTrusted", bad.Info.Path, err)
	}
	im.Close() // its error, if any, is the one that we have
	expectObjects(t, s, good)
	expectValid(t, s, nil, []nix.StorePath{bad.Info.Path})
}

func begin(t *testing.T, s StoreUnderTest) Importer {
	t.Helper()
	im, err := s.Import(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return im
}

func finish(t *testing.T, im Importer) {
	t.Helper()
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
}

// addOne adds o and waits for the verdict. It checks that no more was read than
// announced, and all of it where the path was not refused.
func addOne(t *testing.T, im Importer, o Object) error {
	t.Helper()
	const next = "what follows"
	stream := bytes.NewReader(slices.Concat(o.NAR, []byte(next)))
	if int64(len(o.NAR)) < o.Info.NARSize {
		stream = bytes.NewReader(o.NAR)
	}
	verdict := make(chan error, 2)
	err := im.Add(t.Context(), cloneInfo(o.Info), stream, func(err error) { verdict <- err })
	if err != nil {
		return err
	}
	if left := stream.Len(); left != len(next) {
		t.Errorf("Add left %d bytes of the stream, want %d", left, len(next))
	}
	flushErr := im.Flush(t.Context())
	select {
	case err := <-verdict:
		if err == nil {
			err = flushErr
		}
		return err
	default:
		t.Errorf("Flush returned before %s was decided (error %v)", o.Info.Path, flushErr)
		return flushErr
	}
}

// expectValid asks for paths, of which want should be valid.
func expectValid(t *testing.T, s StoreUnderTest, want, paths []nix.StorePath) {
	t.Helper()
	valid, err := s.ValidPaths(t.Context(), paths)
	if err != nil {
		t.Fatal(err)
	}
	expectPaths(t, "valid paths", valid, want)
}

func expectPaths(t *testing.T, what string, got, want []nix.StorePath) {
	t.Helper()
	if d := cmp.Diff(pathStrings(got), pathStrings(want), cmpopts.EquateEmpty()); d != "" {
		t.Errorf("%s (-got +want):\n%s", what, d)
	}
}

func pathStrings(paths []nix.StorePath) []string {
	var s []string
	for _, p := range paths {
		s = append(s, p.String())
	}
	slices.Sort(s)
	return s
}

func infosPaths(infos []*nix.PathInfo) []nix.StorePath {
	var paths []nix.StorePath
	for _, info := range infos {
		paths = append(paths, info.Path)
	}
	return paths
}

// expectObjects checks that objects are valid, with all that was said of them, and
// that nothing but the objects asked for comes back. Registration times are the
// store's own affair.
func expectObjects(t *testing.T, s StoreUnderTest, objects ...Object) {
	t.Helper()
	c := Closure(objects)
	absent := Output("never added", "absent", func(string) Node { return Node{} }).Info.Path
	asked := append(c.Paths(), absent)
	expectValid(t, s, c.Paths(), asked)
	infos, err := s.PathInfos(t.Context(), asked)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(byPath(infos), byPath(c.Infos()), CompareInfos...); d != "" {
		t.Errorf("path infos (-got +want):\n%s", d)
	}
	for _, o := range objects {
		var b bytes.Buffer
		if err := s.WriteNAR(t.Context(), &b, o.Info.Path); err != nil {
			t.Errorf("%s: %v", o.Info.Path, err)
		} else if !bytes.Equal(b.Bytes(), o.NAR) {
			t.Errorf("%s: NAR differs", o.Info.Path)
		}
	}
}

func byPath(infos []*nix.PathInfo) map[string]*nix.PathInfo {
	m := make(map[string]*nix.PathInfo)
	for _, info := range infos {
		m[info.Path.String()] = info
	}
	return m
}

// CompareInfos compares path infos by what they say of the path, not of the store
// that it is in.
var CompareInfos = cmp.Options{
	cmpopts.IgnoreFields(nix.PathInfo{}, "Registered", "Ultimate"),
	cmpopts.EquateEmpty(),
	cmpopts.EquateComparable(nix.StorePath{}, nix.Hash{}),
}

// closureOf returns what p refers to in c, in any number of steps, and p.
func (c Closure) closureOf(p nix.StorePath) []nix.StorePath {
	infos, err := NewStore(c...).Closure(context.Background(), []nix.StorePath{p})
	return infosPaths(must(infos, err))
}
