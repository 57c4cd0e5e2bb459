package e2e_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/copy-closure/copy-closure/e2e/harness"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
	"github.com/copy-closure/copy-closure/internal/wire"
)

var (
	differentialObjects = flag.Int("differential", 2000, "number of objects of TestDifferential")
	differentialSeed    = flag.Uint64("differential-seed", 1, "seed of TestDifferential")
)

// differences are the beginnings of classes of which this program refuses what a version of
// Nix takes, and the reason. It takes everything else that any version takes, and nothing
// that none takes.
var differences = map[string]string{
	"derivation with the content address of a NAR":      "Nix never makes one; a derivation is known by its text",
	"derivation with the content address of its bytes":  "the same",
	"executable file with a flat content address":       "the address says nothing of the mode",
	"executable file with a text content address":       "the same",
	"executable derivation with a text content address": "the same",
	"derivation: output path in the variable":           "Nix 2.34 does not look at it: two outputs could be exchanged",
}

// TestDifferential sends made-up paths, good and bad, to the real Nix in several versions and
// to this program, and compares what becomes valid.
func TestDifferential(t *testing.T) {
	harness.Need(t, "nix-daemon", "nix-instantiate")
	dir := t.TempDir()
	t.Cleanup(func() { exec.Command("chmod", "-R", "u+w", dir).Run() })
	key, err := nix.ParseSecretKey(differentialKey)
	if err != nil {
		t.Fatal(err)
	}
	conf := "experimental-features = nix-command ca-derivations impure-derivations\nbuild-users-group =\nsandbox = false\nsubstituters =\nfsync-metadata = false\ntrusted-public-keys = " + key.Public().String() + "\n"
	if err := os.WriteFile(filepath.Join(dir, "nix.conf"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	ours := newJudge(t, dir, "ours", buildProduct(t), "serve", "--write", "--trust-client", "--daemon-protocol", "--store", filepath.Join(dir, "ours"))
	nixes := []*judge{newJudge(t, dir, "nix", "nix-daemon", "--stdio")}
	for _, newer := range harness.NewerNix(t) {
		nixes = append(nixes, newJudge(t, dir, "nix-"+newer.Version, filepath.Join(newer.Dir, "nix-daemon"), "--stdio"))
	}
	counts := make(map[string]*classCount)
	for done, seed := 0, *differentialSeed; done < *differentialObjects; seed++ {
		g := &generator{Rand: rand.New(rand.NewPCG(seed, 0)), key: key, seed: seed}
		objects := g.objects(t, dir, min(2000, *differentialObjects-done))
		done += len(objects)
		for _, o := range objects {
			compare(t, o, ours, nixes, counts)
		}
	}
	for _, class := range slices.Sorted(maps.Keys(counts)) {
		c := counts[class]
		t.Logf("%-60s %6d objects, %6d taken by us, taken by Nix: %v, other verdict: %d", class, c.objects, c.ours, c.nixes, c.other)
	}
}

// differentialKey is a secret key of this test.
const differentialKey = "differential-1:" + "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA7aie8zrakLWKjqNAqbw1zZTIVdx3iQ6Y6wEihi1naKQ=="

type classCount struct {
	objects, ours, other int
	nixes                []int
}

func compare(t *testing.T, o candidate, ours *judge, nixes []*judge, counts map[string]*classCount) {
	c := counts[o.class]
	if c == nil {
		c = &classCount{nixes: make([]int, len(nixes))}
		counts[o.class] = c
	}
	c.objects++
	got, want := ours.add(t, o), errors.New("no version takes it")
	var reasons []error
	for i, n := range nixes {
		err := n.add(t, o)
		if err == nil {
			want = nil
			c.nixes[i]++
		}
		reasons = append(reasons, err)
	}
	if got == nil {
		c.ours++
	}
	if (got == nil) == (want == nil) {
		return
	}
	c.other++
	if got == nil || !isKnown(o.class) {
		t.Errorf("%s: %s (CA %q, references %v)\nours: %v\nNix: %v\n%.1500q", o.class, o.Info.Path, o.Info.CA, o.Info.References, got, reasons, o.NAR)
	}
}

// isKnown reports whether it is known that objects of a class are refused.
func isKnown(class string) bool {
	for known := range differences {
		if strings.HasPrefix(class, known) {
			return true
		}
	}
	return false
}

// A judge is a daemon with a store of its own, which decides what is taken.
type judge struct {
	name  string
	cmd   []string
	env   []string
	stdin io.WriteCloser
	in    *wire.Reader
	out   *wire.Writer
	proc  *exec.Cmd
}

func newJudge(t *testing.T, dir, name string, cmd ...string) *judge {
	j := &judge{name: name, cmd: cmd, env: append(os.Environ(),
		"NIX_CONF_DIR="+dir, "NIX_USER_CONF_FILES=", "HOME="+dir, "NIX_REMOTE="+filepath.Join(dir, name))}
	t.Cleanup(j.stop)
	return j
}

func (j *judge) stop() {
	if j.proc != nil {
		j.stdin.Close()
		j.proc.Wait() // how it ends is no matter
		j.proc = nil
	}
}

// start begins a session, unless there is one.
func (j *judge) start() error {
	if j.proc != nil {
		return nil
	}
	j.proc = exec.Command(j.cmd[0], j.cmd[1:]...)
	j.proc.Env = j.env
	stdin, err := j.proc.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := j.proc.StdoutPipe()
	if err != nil {
		return err
	}
	if err := j.proc.Start(); err != nil {
		return err
	}
	j.stdin, j.in, j.out = stdin, wire.NewReader(stdout), wire.NewWriter(stdin)
	for _, n := range []uint64{0x6e697863, 0x120, 0, 0} { // magic, version 1.32, no processor, no space
		j.out.Uint64(n)
	}
	j.out.Flush()
	j.in.Uint64()
	j.in.Uint64()
	return j.verdict()
}

// verdict reads messages up to the end of an answer; the error is what the daemon says.
func (j *judge) verdict() error {
	for {
		switch tag := j.in.Uint64(); {
		case j.in.Err() != nil:
			j.stop()
			return errSessionEnded
		case tag == 0x616c7473: // last
			return nil
		case tag == 0x63787470: // error
			j.in.String(wire.MaxField) // type
			j.in.Uint64()
			j.in.String(wire.MaxField) // name
			text := j.in.String(wire.MaxText)
			j.in.Uint64()
			for range j.in.Count(1000) {
				j.in.Uint64()
				j.in.String(wire.MaxText)
			}
			return errors.New(text)
		case tag == 0x6f6c6d67: // text
			j.in.String(wire.MaxText)
		default:
			j.stop()
			return fmt.Errorf("unknown message %#x", tag)
		}
	}
}

var errSessionEnded = errors.New("the session ended")

// add returns nil if the object becomes valid.
func (j *judge) add(t *testing.T, o candidate) error {
	if err := j.start(); err != nil {
		t.Fatalf("%s: %v", j.name, err)
	}
	w, info := j.out, o.Info
	w.Uint64(39)
	w.Path(info.Path)
	w.String(o.deriver)
	w.String(info.NARHash.Hex())
	w.Paths(info.References)
	w.Uint64(o.registered)
	w.Uint64(uint64(info.NARSize))
	w.Bool(o.ultimate)
	w.Strings(info.Signatures)
	w.String(info.CA)
	w.Bool(false) // repair
	w.Bool(o.unchecked)
	frames := wire.NewFrameWriter(w)
	frames.Write(o.NAR)
	frames.Close()
	w.Flush() // a session that has ended gives no verdict
	err := j.verdict()
	if err != nil {
		j.check(info.Path)
	}
	return err
}

// check ends a session that is out of step, as it is when the daemon could not read a request.
func (j *judge) check(p nix.StorePath) {
	if j.proc == nil {
		return
	}
	j.out.Uint64(1) // is it valid?
	j.out.Path(p)
	j.out.Flush()
	if err := j.verdict(); err != nil || j.in.Uint64() > 1 || j.in.Err() != nil {
		j.stop()
	}
}

// A candidate is a path that may become valid.
type candidate struct {
	nixtest.Object
	class      string
	deriver    string
	registered uint64
	ultimate   bool
	unchecked  bool // signatures are not needed
	newer      bool // Nix 2.8 refuses it, and newer versions may not
}

// A generator makes candidates. The same seed makes the same ones.
type generator struct {
	*rand.Rand
	seed uint64
	key  nix.SecretKey
	made int
	drvs []nixtest.Object // sound derivations, inputs first
}

func pick[T any](g *generator, list ...T) T { return list[g.IntN(len(list))] }

// objects returns n candidates, of which the first are sound derivations that Nix made.
func (g *generator) objects(t *testing.T, dir string, n int) []candidate {
	source := nixtest.Text("builder.sh", "echo > $out")
	g.drvs = g.evaluate(t, dir, source.Info.Path, n/4)
	objects := []candidate{{Object: source, class: "sound path"}}
	for _, o := range g.drvs {
		objects = append(objects, candidate{Object: o, class: "sound derivation"})
	}
	for len(objects) < n {
		if g.IntN(2) == 0 {
			objects = append(objects, g.derivation())
		} else {
			objects = append(objects, g.path())
		}
	}
	return objects
}

// evaluate has the real Nix make n random derivations.
func (g *generator) evaluate(t *testing.T, dir string, source nix.StorePath, n int) (drvs []nixtest.Object) {
	var expr strings.Builder
	fmt.Fprintf(&expr, "let source = builtins.toFile %q %q;\n", "builder.sh", "echo > $out")
	var names []string
	for i := range n {
		fmt.Fprintf(&expr, "d%d = derivation { name = %q; builder = \"/bin/sh\"; system = \"x86_64-linux\";%s };\n", i, g.drvName(i), g.attributes(i))
		names = append(names, fmt.Sprint("d", i))
	}
	fmt.Fprintf(&expr, "in { inherit %s; }\n", strings.Join(names, " "))
	file, root := filepath.Join(dir, fmt.Sprint(g.seed, ".nix")), filepath.Join(dir, fmt.Sprint("evaluated-", g.seed))
	if err := os.WriteFile(file, []byte(expr.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("nix-instantiate", file)
	cmd.Env = append(os.Environ(), "NIX_CONF_DIR="+dir, "HOME="+dir, "NIX_REMOTE="+root)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for i := range n {
		files, err := filepath.Glob(filepath.Join(root, "nix/store/*-"+g.drvName(i)+".drv"))
		if err != nil || len(files) != 1 {
			t.Fatalf("%q, %v", files, err)
		}
		text, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		o := nixtest.Text(g.drvName(i)+".drv", string(text), drvReferences(string(text))...)
		if o.Info.Path.Base() != filepath.Base(files[0]) {
			t.Fatalf("%s became %s", files[0], o.Info.Path)
		}
		drvs = append(drvs, o)
	}
	return drvs
}

func (g *generator) drvName(i int) string { return fmt.Sprintf("drv-%d-%d", g.seed, i) }

// attributes are of the derivation i, which may depend on those before it.
func (g *generator) attributes(i int) string {
	text := pick(g, "", " args = [ source ];", ` text = "line\n\ttab \"quoted\" \\";`, " __structuredAttrs = true; deep = { a = [ 1 2.5 null ]; };")
	input := func() string {
		if i == 0 {
			return "null"
		}
		return fmt.Sprint("d", g.IntN(i))
	}
	for k := range g.IntN(3) {
		text += fmt.Sprintf(" input%d = %s;", k, input())
	}
	digest := sha256.Sum256([]byte(g.drvName(i)))
	switch g.IntN(8) {
	case 0:
		text += fmt.Sprintf(" outputHashMode = %q; outputHashAlgo = \"sha256\"; outputHash = \"%x\";", pick(g, "flat", "recursive"), digest)
	case 1:
		text += fmt.Sprintf(" outputHashMode = \"recursive\"; outputHashAlgo = \"sha1\"; outputHash = \"%x\";", digest[:20])
	case 2:
		text += ` __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256"; outputs = [ "out" "lib" ];`
	case 3, 4:
		text += ` outputs = [ "out" "dev" "bin" ];`
	}
	return text
}

var (
	drvPaths   = regexp.MustCompile(`/nix/store/[0-9a-z]{32}-[^"\\\\]*`)
	drvOutputs = regexp.MustCompile(`^Derive\(\[(.*?)\],\[`)
)

// drvReferences returns the paths in the lists of inputs and sources.
func drvReferences(text string) (refs []nix.StorePath) {
	inputs := text[len(drvOutputs.FindString(text)):]
	inputs, _, _ = strings.Cut(inputs, `],"x86_64-linux"`)
	for _, s := range drvPaths.FindAllString(inputs, -1) {
		if p, err := nix.DefaultStoreDir.Parse(s); err == nil {
			refs = append(refs, p)
		}
	}
	return refs
}

// narText returns the content of a text file's archive.
func narText(o nixtest.Object) string {
	r := wire.NewReader(bytes.NewReader(o.NAR))
	for range 5 {
		r.String(wire.MaxField)
	}
	return r.String(wire.MaxText)
}

// drvChanges are what is done to the text of sound derivations.
var drvChanges = []struct {
	class  string
	change func(g *generator, text string) string
}{
	{"output path everywhere", func(g *generator, text string) string {
		return strings.ReplaceAll(text, firstOutput(text), g.victim())
	}},
	{"output path in the list of outputs", func(g *generator, text string) string {
		return strings.Replace(text, firstOutput(text), g.victim(), 1)
	}},
	{"output path in the variable", func(g *generator, text string) string {
		return strings.Replace(text, `,"`+firstOutput(text)+`")`, `,"`+g.victim()+`")`, 1)
	}},
	{"builder", func(g *generator, text string) string { return strings.Replace(text, `"/bin/sh"`, `"/bin/evil"`, 1) }},
	{"builder in the environment", func(g *generator, text string) string {
		return strings.Replace(text, `("builder","/bin/sh")`, `("builder","/bin/evil")`, 1)
	}},
	{"system", func(g *generator, text string) string { return strings.Replace(text, `"x86_64-linux"`, `"x"`, 1) }},
	{"another variable", func(g *generator, text string) string {
		return strings.Replace(text, `("builder"`, `("aa","x"),("builder"`, 1)
	}},
	{"variable twice, first wrong", func(g *generator, text string) string {
		return strings.Replace(text, `("builder"`, `("builder","x"),("builder"`, 1)
	}},
	{"variable twice, last wrong", func(g *generator, text string) string {
		return strings.Replace(text, `("system"`, `("builder","x"),("system"`, 1)
	}},
	{"text behind it", func(g *generator, text string) string { return text + pick(g, " ", "\n", ")", "Derive(") }},
	{"commas missing", func(g *generator, text string) string { return strings.ReplaceAll(text, `),(`, `)(`) }},
	{"commas in front", func(g *generator, text string) string { return strings.ReplaceAll(text, `[(`, `[,(`) }},
	{"commas at the end", func(g *generator, text string) string { return strings.ReplaceAll(text, `)]`, `),]`) }},
	{"output twice", func(g *generator, text string) string {
		return strings.Replace(text, "Derive([", "Derive(["+pick(g, `("out","","",""),`, `("zzz","","",""),`, `("out","`+g.victim()+`","",""),`), 1)
	}},
	{"output renamed", func(g *generator, text string) string { return strings.ReplaceAll(text, `("out",`, `("lib",`) }},
	{"hash algorithm", func(g *generator, text string) string {
		return strings.Replace(text, `sha256"`, pick(g, `sha3"`, `sha512"`, `SHA256"`, `"`, `md5"`), 1)
	}},
	{"digest", func(g *generator, text string) string {
		return fixedDigest.ReplaceAllString(text, pick(g, `sha256","00${1}")`, `sha256","${1}00")`, `sha256","impure")`, `sha256","")`))
	}},
	{"digest in upper case", func(g *generator, text string) string {
		return fixedDigest.ReplaceAllStringFunc(text, func(s string) string { return s[:9] + strings.ToUpper(s[9:]) })
	}},
	{"input that is absent", func(g *generator, text string) string {
		return strings.Replace(text, `[("/nix/store/`, `[("/nix/store/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-x.drv",["out"]),("/nix/store/`, 1)
	}},
	{"output of an input", func(g *generator, text string) string {
		return strings.Replace(text, `.drv",["out"]`, pick(g, `.drv",["nope"]`, `.drv",["dev"]`, `.drv",[]`, `.drv",["out","out"]`), 1)
	}},
	{"cut", func(g *generator, text string) string {
		parts := strings.SplitAfter(text, `")`)
		return strings.Join(parts[:g.IntN(len(parts))], "")
	}},
	{"double slashes", func(g *generator, text string) string {
		return strings.ReplaceAll(text, `[("/nix/store/`, `[("/nix//store/`)
	}},
	{"dots", func(g *generator, text string) string {
		return strings.ReplaceAll(text, `[("/nix/store/`, `[("/nix/./store/`)
	}},
	{"no outputs", func(g *generator, text string) string { return drvOutputs.ReplaceAllString(text, "Derive([],[") }},
	{"escapes that are not needed", func(g *generator, text string) string { return strings.ReplaceAll(text, `"name"`, `"\na\me"`) }},
	{"nothing", func(g *generator, text string) string { return text }},
}

var fixedDigest = regexp.MustCompile(`sha256","([0-9a-f]{64})"\)`)

// firstOutput returns the path of the first output, or what is in no derivation.
func firstOutput(text string) string {
	if p := drvPaths.FindString(drvOutputs.FindString(text)); p != "" {
		return p
	}
	return "\x00"
}

// victim is a path that somebody else should make.
func (g *generator) victim() string {
	g.made++
	sum := sha256.Sum256(fmt.Append(nil, g.seed, g.made))
	return "/nix/store/" + nix.EncodeNix32(sum[:20]) + pick(g, "-sudo-1.9", "-x", "-x.drv")
}

// derivation changes a sound derivation.
func (g *generator) derivation() candidate {
	o := pick(g, g.drvs...)
	change := pick(g, drvChanges...)
	text := change.change(g, narText(o))
	refs := drvReferences(text)
	refs = slices.DeleteFunc(refs, func(p nix.StorePath) bool { return strings.HasPrefix(p.Base(), "aaaaaaaa") })
	name := pick(g, o.Info.Path.Name(), o.Info.Path.Name(), o.Info.Path.Name(), "renamed.drv")
	c := candidate{class: "derivation: " + change.class, unchecked: g.IntN(4) > 0}
	if len(refs) > 0 && g.IntN(8) == 0 {
		refs = refs[1:]
		c.class += ", without a reference"
	}
	c.Object = nixtest.Text(name, text, refs...)
	switch g.IntN(16) {
	case 0:
		c.class = "derivation with the content address of a NAR"
		c.Object = nixtest.Source(name, nixtest.Node{Content: text}, refs...)
	case 1:
		c.class = "derivation with the content address of its bytes"
		c.Object = nixtest.Flat(name, text)
	case 2:
		c.class += ", no content address"
		c.Info.CA = ""
	case 3:
		c.class = "executable derivation with a text content address"
		c.setNAR(nixtest.Node{Content: text, Executable: true})
	case 4:
		c.class = "derivation that is a directory"
		c.Object = nixtest.Output(text, name, func(string) nixtest.Node { return nixtest.Node{Entries: map[string]nixtest.Node{"x": {Content: text}}} })
	}
	return c
}

// setNAR changes the contents.
func (c *candidate) setNAR(n nixtest.Node) {
	c.NAR = n.NAR()
	c.Info.NARHash, c.Info.NARSize = nix.SHA256Hash(sha256.Sum256(c.NAR)), int64(len(c.NAR))
}

// path makes a path that is no derivation, with what may be wrong about one.
func (g *generator) path() candidate {
	g.made++
	content := fmt.Sprintf("content %d of %d\n", g.made, g.seed)
	c := candidate{class: "path", unchecked: g.IntN(4) > 0, ultimate: g.IntN(4) == 0}
	refs := pick(g, nil, nil, []nix.StorePath{g.drvs[0].Info.Path}, []nix.StorePath{g.drvs[0].Info.Path, g.drvs[1].Info.Path})
	node := pick(g, nixtest.Node{Content: content}, nixtest.Node{Content: content}, nixtest.Node{Content: content, Executable: true},
		nixtest.Node{Target: strings.TrimSpace(content)}, nixtest.Node{Entries: map[string]nixtest.Node{"a": {Content: content}}})
	self := func(self string) nixtest.Node { return nixtest.Node{Content: content + self + self} }
	switch kind := g.IntN(6); kind {
	case 0:
		c.class, c.Object = "path with a NAR content address", nixtest.Source("source", node, refs...)
	case 1:
		c.class, c.Object = "path with a text content address", nixtest.Text("text", content, refs...)
	case 2:
		c.class, c.Object = "path with a flat content address", nixtest.Flat("flat", content)
	case 3:
		c.class, c.Object = "input-addressed path", nixtest.Output(content, "output", func(string) nixtest.Node { return node }, refs...)
	case 4:
		c.class, c.Object = "self-reference", nixtest.SelfSource("self", self, refs...)
		c.newer = true
	case 5:
		c.class, c.Object = "self-reference of old", nixtest.OldSelfSource("self", self, refs...)
	}
	g.spoil(&c, content)
	return c
}

// spoil changes one thing, or nothing.
func (g *generator) spoil(c *candidate, content string) {
	info := c.Info
	kind := c.class
	note := func(what string) { c.class += ", " + what }
	absent, _ := nix.DefaultStoreDir.Parse("/nix/store/bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb-absent")
	switch g.IntN(15) {
	case 0:
		note("wrong NAR hash")
		info.NARHash = nix.SHA256Hash(sha256.Sum256([]byte(content)))
	case 1:
		note("wrong size")
		info.NARSize += pick(g, int64(8), -8)
	case 2:
		note("other contents")
		c.setNAR(nixtest.Node{Content: content + "!"})
	case 3:
		note("content address in another form")
		info.CA = pick(g, "", "text:", "fixed:r:sha256:", info.CA+"x", "magic:"+info.CA, strings.Replace(info.CA, "sha256", "sha1", 1),
			"fixed:r:sha256:"+info.NARHash.Hex(), strings.Replace(info.CA, "fixed:r:", "fixed:", 1), "text:"+info.NARHash.String())
	case 4:
		note("reference that is absent")
		info.References = append(info.References, absent)
	case 5:
		note("reference to itself")
		info.References = append(info.References, info.Path)
	case 6:
		note("no references")
		info.References = nil
	case 7:
		if strings.Contains(kind, "text") || strings.Contains(kind, "flat") {
			_, word, _ := strings.Cut(kind, "with a ")
			c.class = "executable file with a " + word
			c.setNAR(nixtest.Node{Content: content, Executable: true})
		}
	case 8:
		note("a directory or link")
		c.setNAR(pick(g, nixtest.Node{Target: content}, nixtest.Node{Entries: map[string]nixtest.Node{}}))
	case 9:
		note("deriver")
		c.deriver = pick(g, g.drvs[0].Info.Path.String(), absent.String(), absent.String()+".drv", info.Path.String(), "/gnu/store/"+absent.Base(), "x", "/nix/store/x")
	case 10:
		note("time of registration")
		c.registered = pick(g, uint64(1), 1_700_000_000, 1<<40, 1<<62)
	case 11:
		note("signatures")
		sig, err := g.key.Sign(info)
		if err != nil {
			panic(err) // it has hash and size
		}
		info.Signatures = pick(g, []string{sig}, []string{nixtest.Signature("other-1"), sig}, []string{nixtest.Signature("differential-1")}, []string{nixtest.Signature("other-1")})
		if !c.newer && g.IntN(3) == 0 { // newer versions refuse the malformed
			info.Signatures = pick(g, []string{"x"}, []string{"other-1:AAAA"}, []string{sig, "x"})
		}
	case 12:
		note("cut NAR")
		c.NAR = c.NAR[:len(c.NAR)-8*(1+g.IntN(4))]
	}
	if !c.unchecked {
		note("checked")
	}
}
