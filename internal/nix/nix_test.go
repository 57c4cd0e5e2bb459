package nix_test

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/copy-closure/copy-closure/internal/nix"
)

// Vectors were printed by Nix 2.8.0 for the store directory /tmp/nx/store and for
// the throw-away key below.
const vectorDir nix.StoreDir = "/tmp/nx/store"

func TestNix32(t *testing.T) {
	raw, err := hex.DecodeString("1c37d01af40be2e80691de3cc3df44377a699afbb17c68f080964b2fd071fc13")
	if err != nil {
		t.Fatal(err)
	}
	const want = "04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw"
	if got := nix.EncodeNix32(raw); got != want {
		t.Errorf("EncodeNix32 = %s, want %s", got, want)
	}
	back, err := nix.DecodeNix32(want)
	if err != nil || string(back) != string(raw) {
		t.Errorf("DecodeNix32 = %x, %v", back, err)
	}
}

func TestDecodeNix32Refuses(t *testing.T) {
	for name, text := range map[string]string{
		"letter outside the alphabet": "04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqe",
		"bits beyond the last byte":   "z4zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw",
		"impossible length":           "0",
	} {
		if raw, err := nix.DecodeNix32(text); err == nil {
			t.Errorf("%s: decoded to %x", name, raw)
		}
	}
}

func FuzzDecodeNix32(f *testing.F) {
	f.Add("04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw")
	f.Add("00")
	f.Fuzz(func(t *testing.T, text string) {
		raw, err := nix.DecodeNix32(text)
		if err == nil && nix.EncodeNix32(raw) != text {
			t.Errorf("%q is accepted, but %x encodes to %q", text, raw, nix.EncodeNix32(raw))
		}
	})
}

func TestParseHash(t *testing.T) {
	want := nix.SHA256Hash(sha256.Sum256([]byte("x")))
	for _, form := range []string{
		want.String(),
		"sha256:" + want.Hex(),
		"sha256:LXEWQrcmsEQBYnyp++6wyb+fFNtKQAJ0o6dG6QuPKII=",
	} {
		if got, err := nix.ParseHash(form); err == nil && got.Algorithm() != nix.SHA256 || err != nil {
			t.Errorf("ParseHash(%q) = %v, %v", form, got, err)
		}
	}
	for _, form := range []string{"", "sha256", "sha256:", "sha3:" + want.Hex(), "sha256:" + want.Hex()[1:], "sha256-" + want.Hex(), "sha256:" + strings.Repeat("*", 64)} {
		if got, err := nix.ParseHash(form); err == nil {
			t.Errorf("ParseHash(%q) = %v, want an error", form, got)
		}
	}
}

const hello = "/nix/store/s66mzxpvicwk07gjbjfw9izjfa797vsw-hello-2.12.1"

func TestParseStorePath(t *testing.T) {
	p, err := nix.DefaultStoreDir.Parse(hello)
	if err != nil {
		t.Fatal(err)
	}
	if p.String() != hello || p.Name() != "hello-2.12.1" || p.HashPart() != "s66mzxpvicwk07gjbjfw9izjfa797vsw" || p.Dir() != "/nix/store" {
		t.Errorf("parsed to %v with name %q and hash part %q", p, p.Name(), p.HashPart())
	}
	const hash = "/nix/store/s66mzxpvicwk07gjbjfw9izjfa797vsw"
	for name, text := range map[string]string{
		"empty":              "",
		"relative":           "nix/store/s66mzxpvicwk07gjbjfw9izjfa797vsw-x",
		"other store":        "/gnu/store/s66mzxpvicwk07gjbjfw9izjfa797vsw-x",
		"inside a path":      hello + "/bin",
		"double slash":       "/nix/store//s66mzxpvicwk07gjbjfw9izjfa797vsw-x",
		"no name":            hash + "-",
		"no dash":            hash + "x",
		"other byte at dash": hash + "_hello",
		"bad hash letter":    "/nix/store/e66mzxpvicwk07gjbjfw9izjfa797vsw-x",
		"bad name letter":    hash + "-a b",
		"dots":               hash + "-..",
		"dots and dash":      hash + "-.-x",
		"long name":          hash + "-" + strings.Repeat("a", 212),
	} {
		if p, err := nix.DefaultStoreDir.Parse(text); err == nil {
			t.Errorf("%s: %q is accepted as %v", name, text, p)
		}
	}
	if _, err := nix.DefaultStoreDir.Parse(hash + "-" + strings.Repeat("a", 211)); err != nil {
		t.Errorf("a name of 211 characters is refused: %v", err)
	}
}

func FuzzParseStorePath(f *testing.F) {
	f.Add(hello)
	f.Add(hello + "/..")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := nix.DefaultStoreDir.Parse(text)
		if err != nil {
			return
		}
		if p.String() != text {
			t.Errorf("%q prints as %q", text, p)
		}
		if again, err := p.Dir().ParseBase(p.Base()); err != nil || again != p {
			t.Errorf("base of %q parses to %v, %v", text, again, err)
		}
	})
}

func TestSplit(t *testing.T) {
	for text, want := range map[string]string{
		hello:                               "",
		hello + "/bin/hello":                "bin/hello",
		hello + "//bin/../share/":           "share",
		"/nix/store/../store/" + hello[11:]: "",
	} {
		p, rest, err := nix.DefaultStoreDir.Split(text)
		if err != nil || p.String() != hello || rest != want {
			t.Errorf("Split(%q) = %v, %q, %v; want the rest %q", text, p, rest, err, want)
		}
	}
	for _, text := range []string{"/nix/store", "/nix/store/x", "/etc/passwd", "result"} {
		if p, _, err := nix.DefaultStoreDir.Split(text); err == nil {
			t.Errorf("Split(%q) = %v, want an error", text, p)
		}
	}
}

func TestContentAddressedPath(t *testing.T) {
	for _, c := range []struct{ name, ca, want string }{
		{"f", "fixed:sha256:1r3v22qkypccqifzbww5lrn6hf1chi23m6zzkyvb8bvg457nxslq", "f34x6saj4hnghga3zjhdmziyilvibn12-f"},
		{"f", "fixed:r:sha1:kj2lgi6kqfap560mmnz4hw91732dbxgv", "xrq0gcwgfhspkabm1lj5ybbgw1rac7cn-f"},
		{"d", "fixed:r:sha256:1jpg5v8rcf4d08rlpq51vnd1w800l64h34r0bw4vkb6z3qlk089k", "fswczrrsjlzj6b4mrjbs1n9wzydfhfbf-d"},
		{"leaf", "fixed:r:sha256:04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw", "nwxairpi44q9rxmyybfyjz3arn86axr0-leaf"},
	} {
		ca, err := nix.ParseContentAddress(c.ca)
		if err != nil {
			t.Fatal(err)
		}
		if ca.String() != c.ca {
			t.Errorf("%s prints as %s", c.ca, ca)
		}
		got, err := vectorDir.ContentAddressedPath(c.name, ca, nil, false)
		if err != nil || got.Base() != c.want {
			t.Errorf("path of %s %s = %v, %v; want %s", c.name, c.ca, got, err, c.want)
		}
	}
	flat, err := nix.ParseContentAddress("fixed:sha256:1r3v22qkypccqifzbww5lrn6hf1chi23m6zzkyvb8bvg457nxslq")
	if err != nil {
		t.Fatal(err)
	}
	if p, err := vectorDir.ContentAddressedPath("f", flat, nil, true); err == nil {
		t.Errorf("a flat file that refers to itself has the path %v", p)
	}
}

// TestUnverifiableAddress takes the paths that "nix store add" of Nix 2.34 makes of a file f
// with the line "hi" and of a directory with it. Their addresses are no reason to refuse
// them, and no reason to trust them.
func TestUnverifiableAddress(t *testing.T) {
	secret, err := nix.ParseSecretKey(secretText)
	if err != nil {
		t.Fatal(err)
	}
	keys := nix.TrustedKeys{}
	keys.Add(secret.Public())
	const file, dir = "EFUdrtf6Rn0LWIJufrmg8q99aT3jGfLvd1//zaJEufY=", "MyEwKR7frLkJXyCTAYmhACAemt2h4EszAo04ltEu78o="
	for _, c := range []struct {
		path, ca, narHash string
		size              int64
	}{
		{"w4033b5da8i1mnvvvz836a1r9b3ajh5i-in", "fixed:git:sha1:v7mq0nlnh88287lwh73hs14xwpfafmfz", dir, 288},
		{"0y3pd9w62lfv3jpg3xw9z6h0qfyfl388-in", "fixed:git:sha256:0jl8pgbddsa1npjba7vkqly667xw8ky9rin7fmg9l8x369anmkn6", dir, 288},
		{"p8mmgij8lcknrcwhzhmvc9n3zhr3mqik-f", "fixed:r:blake3:1x1y3wjmnnz09ya91vbrk7gy48najpj781clyjpjg55hmisgpbnc", file, 120},
		{"7dmnd8bwb6jwlac7ylvdpqaxzbyz0ag1-f", "fixed:blake3:0f74msa6lbgvs5ykhnx144j7f75rm00pw6r2mkgwcymdiwj612qb", file, 120},
	} {
		narHash, err := nix.ParseHash("sha256-" + c.narHash)
		if err != nil {
			t.Fatal(err)
		}
		path := parse(t, nix.DefaultStoreDir, "/nix/store/"+c.path)
		info := &nix.PathInfo{Path: path, CA: c.ca, NARHash: narHash, NARSize: c.size}
		if err := info.Check(); err != nil {
			t.Error(err)
		}
		if keys.Trusts(info) || info.ContentAddressed() {
			t.Errorf("%s vouches for %s", c.ca, path)
		}
		if info.Signatures, err = info.SignedWith([]nix.SecretKey{secret}); err != nil {
			t.Fatal(err)
		}
		if !keys.Trusts(info) {
			t.Errorf("a signature does not vouch for %s", path)
		}
		info.Path = parse(t, nix.DefaultStoreDir, hello)
		if err := info.Check(); err == nil {
			t.Errorf("%s belongs to %s", c.ca, info.Path)
		}
	}
}

func TestCheckContentAddress(t *testing.T) {
	path := parse(t, vectorDir, "/tmp/nx/store/nwxairpi44q9rxmyybfyjz3arn86axr0-leaf")
	info := &nix.PathInfo{Path: path, CA: "fixed:r:sha256:04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw"}
	if err := info.CheckContentAddress(); err != nil {
		t.Error(err)
	}
	info.References = []nix.StorePath{path}
	if err := info.CheckContentAddress(); err == nil {
		t.Error("a reference to itself changes the path, yet it is accepted")
	}
	info.CA = "nonsense"
	if err := info.CheckContentAddress(); err == nil {
		t.Error("nonsense is accepted as a content address")
	}
}

const (
	secretText = "cache.test-1:ZxeFj/RDHbw4dhIaFJ/+QBVxhyACpqhjhTxYMkEa0prVepPgvvizzo3GA7ZqL70cpb8GVUz3hju8LbborBXrEw=="
	publicText = "cache.test-1:1XqT4L74s86NxgO2ai+9HKW/BlVM94Y7vC226KwV6xM="
	signature  = "cache.test-1:OsloXhWXSUR6zKVa80lZcA7jK0i9751qYVuhhAfcFoV258j5aeUZjze0paPbBmqLEyQRZ7/xbp1RlabOidGmDw=="
)

func signedInfo(t *testing.T) *nix.PathInfo {
	t.Helper()
	hash, err := nix.ParseHash("sha256:045vy0jg40fc8y0f233wz6q4xphfajv1if0dm68hvb5yjh7d8s40")
	if err != nil {
		t.Fatal(err)
	}
	return &nix.PathInfo{
		Path:    parse(t, vectorDir, "/tmp/nx/store/kvps1hm2iy0f857p1g172axliaiz3syx-top"),
		NARHash: hash,
		NARSize: 384,
		References: []nix.StorePath{
			parse(t, vectorDir, "/tmp/nx/store/gvi9b9yfvyqwhwb3xhghddf2yzz6hnh9-mid"),
			parse(t, vectorDir, "/tmp/nx/store/rfgcshq8yqrj4agbx0m0ygdzx9nv6gdp-leaf"),
		},
	}
}

func TestSign(t *testing.T) {
	key, err := nix.ParseSecretKey(secretText + "\n")
	if err != nil {
		t.Fatal(err)
	}
	if got := key.Public().String(); got != publicText {
		t.Errorf("public key is %s, want %s", got, publicText)
	}
	if key.Text() != secretText {
		t.Error("the secret key does not print as it was read")
	}
	got, err := key.Sign(signedInfo(t))
	if err != nil || got != signature {
		t.Errorf("signature is %s, %v; want %s", got, err, signature)
	}
	if _, err := key.Sign(&nix.PathInfo{}); err == nil {
		t.Error("a path info without hash and size was signed")
	}
}

func TestTrusts(t *testing.T) {
	keys, err := nix.NewTrustedKeys(publicText)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*nix.PathInfo)
		want   bool
	}{
		"signed":           {func(*nix.PathInfo) {}, true},
		"among others":     {func(i *nix.PathInfo) { i.Signatures = []string{"x:AAAA", "bad", signature} }, true},
		"unsigned":         {func(i *nix.PathInfo) { i.Signatures = nil }, false},
		"other size":       {func(i *nix.PathInfo) { i.NARSize++ }, false},
		"other references": {func(i *nix.PathInfo) { i.References = i.References[1:] }, false},
		"unknown key":      {func(i *nix.PathInfo) { i.Signatures[0] = "other" + signature[10:] }, false},
		"damaged":          {func(i *nix.PathInfo) { i.Signatures[0] = strings.Replace(signature, "OsloX", "OsloY", 1) }, false},
		"short":            {func(i *nix.PathInfo) { i.Signatures[0] = "cache.test-1:AAAA" }, false},
		"false content address": {func(i *nix.PathInfo) {
			i.Signatures = nil
			i.CA = "fixed:r:sha256:04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw"
		}, false},
	} {
		info := signedInfo(t)
		info.Signatures = []string{signature}
		c.change(info)
		if got := keys.Trusts(info); got != c.want {
			t.Errorf("%s: trusted = %v, want %v", name, got, c.want)
		}
	}
}

func TestParseKeysRefuses(t *testing.T) {
	for _, text := range []string{"", "name", ":AAAA", "name:AAAA", "name:***", publicText} {
		if _, err := nix.ParseSecretKey(text); err == nil {
			t.Errorf("%q is accepted as a secret key", text)
		} else if len(text) > 20 && strings.Contains(err.Error(), text[20:]) {
			t.Errorf("the error shows the key: %v", err)
		}
	}
	broken := strings.Replace(secretText, "BXrEw==", "BXsEw==", 1)
	if _, err := nix.ParseSecretKey(broken); err == nil {
		t.Error("a secret key whose halves do not belong together is accepted")
	}
}

func TestCheckNAR(t *testing.T) {
	info := signedInfo(t)
	if err := info.CheckNAR(info.NARHash, 384); err != nil {
		t.Error(err)
	}
	if err := info.CheckNAR(info.NARHash, 383); !errors.Is(err, nix.ErrDamaged) {
		t.Errorf("wrong size: %v", err)
	}
	var mismatch *nix.HashMismatchError
	if err := info.CheckNAR(nix.SHA256Hash(sha256.Sum256(nil)), 384); !errors.Is(err, nix.ErrDamaged) || !errors.As(err, &mismatch) {
		t.Errorf("wrong hash: %v", err)
	}
}

const drvText = `Derive([("dev","/nix/store/s66mzxpvicwk07gjbjfw9izjfa797vsw-hello-2.12.1-dev","",""),("out","","r:sha256","")],` +
	`[("/nix/store/a66mzxpvicwk07gjbjfw9izjfa797vsw-dep.drv",["dev","out"])],` +
	`["/nix/store/b66mzxpvicwk07gjbjfw9izjfa797vsw-builder.sh"],"x86_64-linux","/bin/sh",["-e","a \"quoted\" word"],` +
	`[("name","hello"),("text","line\nline\ttab\\")])`

func TestParseDerivation(t *testing.T) {
	drvPath := parse(t, nix.DefaultStoreDir, "/nix/store/s66mzxpvicwk07gjbjfw9izjfa797vsw-hello-2.12.1.drv")
	drv, err := nix.DefaultStoreDir.ParseDerivation(drvPath, drvText)
	if err != nil {
		t.Fatal(err)
	}
	if len(drv.Outputs) != 2 || drv.Outputs[0].Name != "dev" || drv.Outputs[0].Path.Name() != "hello-2.12.1-dev" || !drv.Outputs[1].Path.IsZero() {
		t.Errorf("outputs are %v", drv.Outputs)
	}
	if len(drv.Inputs) != 1 || drv.Inputs[0].Path.Name() != "dep.drv" || len(drv.Sources) != 1 {
		t.Errorf("inputs are %v, sources %v", drv.Inputs, drv.Sources)
	}
	for cut := range len(drvText) {
		if _, err := nix.DefaultStoreDir.ParseDerivation(drvPath, drvText[:cut]); err == nil {
			t.Errorf("text cut at byte %d is accepted", cut)
		}
	}
}

// FuzzParseDerivation checks that every text, and what is computed from it, has an answer.
func FuzzParseDerivation(f *testing.F) {
	f.Add(drvText)
	for _, text := range derivations(f) {
		f.Add(text)
	}
	p := named(f, derivations(f), "tree.drv")
	f.Fuzz(func(t *testing.T, text string) {
		drv, err := nix.DefaultStoreDir.ParseDerivation(p, text)
		if err != nil {
			return
		}
		inputs := func(nix.StorePath) (nix.DerivationHash, error) { return nix.DerivationHash{}, nil }
		checked := drv.CheckOutputs(nix.DefaultStoreDir, inputs)
		if _, err := drv.Hash(inputs); checked == nil && err != nil {
			t.Errorf("a sound derivation has no hash: %v", err)
		}
	})
}

func parse(t *testing.T, dir nix.StoreDir, text string) nix.StorePath {
	t.Helper()
	p, err := dir.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestSignedWith(t *testing.T) {
	one, err := nix.GenerateSecretKey("one-1")
	if err != nil {
		t.Fatal(err)
	}
	two, _ := nix.GenerateSecretKey("two-1")
	if again, err := nix.ParseSecretKey(one.Text()); err != nil || !again.Key.Equal(one.Key) {
		t.Errorf("read again: %v", err)
	}
	path, err := nix.DefaultStoreDir.Parse("/nix/store/s66mzxpvicwk07gjbjfw9izjfa797vsw-hello-2.12.1")
	if err != nil {
		t.Fatal(err)
	}
	info := &nix.PathInfo{Path: path, NARHash: nix.SHA256Hash([32]byte{1}), NARSize: 8, Signatures: []string{"one-1:" + strings.Repeat("A", 86) + "=="}}
	for _, want := range []int{3, 3} { // the wrong one stays
		if info.Signatures, err = info.SignedWith([]nix.SecretKey{one, two}); err != nil || len(info.Signatures) != want {
			t.Errorf("got %q, %v", info.Signatures, err)
		}
	}
	keys := nix.TrustedKeys{"one-1": one.Public(), "two-1": one.Public()}
	if got := keys.Signers(info); len(got) != 1 || got[0] != "one-1" {
		t.Errorf("signed by %q", got)
	}
	for _, name := range []string{"", "a:b", "a b", "a\n"} {
		if _, err := nix.GenerateSecretKey(name); err == nil {
			t.Errorf("a key may be called %q", name)
		}
	}
}
