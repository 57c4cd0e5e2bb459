package nix_test

import (
	"strings"
	"testing"

	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
)

// Texts that Nix 2.8 and 2.34 have written.
const (
	thing = `{"dependentRealisations":{},"id":"sha256:6b9206b68e3d12a3cc840a6e022b5394a2297822e0c61f99383ed9e99661c2cf!out","outPath":"aghv8shzw76p3aakd1zl1scsx4l5xf6l-ca-thing","signatures":[]}`
	user  = `{"dependentRealisations":{"sha256:6b9206b68e3d12a3cc840a6e022b5394a2297822e0c61f99383ed9e99661c2cf!out":"aghv8shzw76p3aakd1zl1scsx4l5xf6l-ca-thing"},"id":"sha256:6b8bd6d8175715ae48ef173cc39e029182d65d27a75871bf9d12ce4c4bacb5a7!out","outPath":"wb5f4iwdm7dfz8shs5h49sz9ir5609hn-ca-top","signatures":[]}`
)

func TestRealisation(t *testing.T) {
	dir := nix.StoreDir("/nix/store")
	for _, text := range []string{thing, user} {
		r, err := dir.ParseRealisation(text)
		if err != nil || r.Text() != text {
			t.Errorf("%s is written %v (%v)", text, r, err)
		}
	}
	for _, text := range []string{
		"", "{}", "[]",
		strings.Replace(thing, "!out", "", 1),
		strings.Replace(thing, "!out", "!../x", 1),
		strings.Replace(thing, "sha256:6b", "sha256:6B", 1),
		strings.Replace(thing, "sha256:6b92", "sha1:6b92", 1),
		strings.Replace(thing, "aghv8", "../..", 1),
		strings.Replace(user, "aghv8", "../..", 1),
	} {
		if r, err := dir.ParseRealisation(text); err == nil {
			t.Errorf("%s is taken for %s", text, r.Text())
		}
	}
}

// TestRealisationSignatures checks signatures that Nix 2.8 and 2.34 have made, and that ours
// are the same. The newer Nix leaves the dependencies out.
func TestRealisationSignatures(t *testing.T) {
	secret, err := nix.ParseSecretKey("sign-1:WGThVhzuWzpXe31ZRHGnFiozGDDxIupdRcfZOrvCTtocoOlANjGbkFZvGuNkBk65h/TXvruJu89iY8Za8PylAQ==")
	if err != nil {
		t.Fatal(err)
	}
	keys := nix.TrustedKeys{"sign-1": secret.Public()}
	for _, signed := range []string{
		strings.Replace(thing, "[]", `["sign-1:MRM0qGDqhD9SUPZgnP5yACyc4Zk8DXV6p3Hr/RKgVxPugb9RK2EL9LVZkCBdp4vZjUF46OmERotN/hka9MQ+Aw=="]`, 1),
		strings.Replace(user, "[]", `["sign-1:WunCNWD4Er8djc9vDrR9gtZFAPRROrwK/1nKZvVkqnR7YrzEhCIVU5XoZseTSMt/iyV6YDyAr9oPD/QXMpobDw=="]`, 1),
		`{"dependentRealisations":{},"id":"sha256:6b8bd6d8175715ae48ef173cc39e029182d65d27a75871bf9d12ce4c4bacb5a7!out","outPath":"wb5f4iwdm7dfz8shs5h49sz9ir5609hn-ca-top","signatures":["sign-1:0w1lZDPTzL8bHG/YVKMZuQnnWWGZBPJR27GjsbFagx7fWxAYqPD5UGGQQFZexb8v/EkonPHf4/qM3jTeixqfBA=="]}`,
	} {
		r, err := nix.StoreDir("/nix/store").ParseRealisation(signed)
		if err != nil || !r.SignedBy(keys) {
			t.Fatalf("not signed: %s (%v)", signed, err)
		}
		r.Sign([]nix.SecretKey{secret})
		if r.Text() != signed {
			t.Errorf("signed twice: %s", r.Text())
		}
		r.Signatures = nil
		r.Sign([]nix.SecretKey{secret})
		if r.Text() != signed {
			t.Errorf("our signature: %s, want %s", r.Text(), signed)
		}
		r.Path = nixtest.Chain(1)[0].Info.Path
		if r.SignedBy(keys) {
			t.Error("the signature holds for another path, too")
		}
	}
}
