package closure_test

import (
	"context"
	"errors"
	"testing"

	"github.com/copy-closure/copy-closure/closure"
	"github.com/copy-closure/copy-closure/internal/nix"
	"github.com/copy-closure/copy-closure/internal/nixtest"
	"github.com/copy-closure/copy-closure/internal/progress"
)

// A partialSource has its first delivery of each path begin with what the destination
// had, which is as good as the first store.
type partialSource struct{ *caches }

func (partialSource) DeliversPartialNARs() {}

func (s partialSource) OpenLane(ctx context.Context) (closure.SourceLane, error) {
	lane, err := s.caches.OpenLane(ctx)
	return partialLane{lane.(*cachesLane)}, err
}

type partialLane struct{ *cachesLane }

func (l partialLane) Next(ctx context.Context) (closure.NAR, error) {
	nar, err := l.cachesLane.Next(ctx)
	return partialNAR{nar}, err
}

type partialNAR struct{ closure.NAR }

func (partialNAR) MayBeWrong() {}

// TestPartialNAR delivers wrong beginnings: those paths come once more, and only a source
// that has them wrong itself fails.
func TestPartialNAR(t *testing.T) {
	c := nixtest.Random(7, 60)
	whole, damaged := nixtest.NewStore(c...), nixtest.NewStore(c...)
	for i := 0; i < len(c); i += 3 {
		damaged.Damage(c[i].Info.Path, 130)
	}
	for _, test := range []struct {
		name  string
		again *nixtest.Store
		want  error
	}{{"right the second time", whole, nil}, {"never right", damaged, nix.ErrDamaged}} {
		t.Run(test.name, func(t *testing.T) {
			target := &tolerantTarget{Store: nixtest.NewStore()}
			all, err := closure.Walk(t.Context(), memorySource{whole}, c.Paths())
			if err != nil {
				t.Fatal(err)
			}
			source := partialSource{newCaches(damaged, test.again)}
			plan, err := closure.Negotiate(t.Context(), all, source, target, closure.Terms{})
			if err != nil {
				t.Fatal(err)
			}
			meter := new(progress.Meter)
			err = closure.Copy(t.Context(), plan, source, target, closure.CopyOptions{Lanes: 2, Meter: meter})
			if !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			if s := meter.State(); err == nil && (s.DoneBytes != s.TotalBytes || len(target.All()) != len(all.Paths)) {
				t.Errorf("%d paths arrived of %d, the meter ends with %+v", len(target.All()), len(all.Paths), s)
			}
			if err := target.Verify(); err != nil {
				t.Error(err)
			}
		})
	}
}
