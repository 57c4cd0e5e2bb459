package harness

import (
	"context"
	"slices"
	"time"
)

const (
	// farTrip is the round trip that is added to find out how often it is paid.
	farTrip = 200 * time.Millisecond
	// loginTrip is the round trip during the login, the same in all runs. It
	// is not zero so that the server's word that somebody has logged in is
	// read before the client can have answered to the same news.
	loginTrip = 40 * time.Millisecond
	// newsTime is how long the server takes, at most, from that word to
	// sending the news. The client hears it half a loginTrip later.
	newsTime = 10 * time.Millisecond
)

// A Trial runs a command once and returns how long it took, without what had
// to be prepared before.
type Trial func(context.Context) (time.Duration, error)

// RoundTrips says how many round trips a command needs from the end of its
// authentication on, seen from outside: how much longer it takes at 240 ms
// than at 40 ms, in units of 200 ms; a host that is near might be talked to in
// another way. The trial must reach s through r. Each
// distance is tried as often as runs says, alternately, and the shortest times
// are compared: whatever else the machine does only ever adds to a time. With
// little data, the result is within a few tenths of the number that a reader
// of the protocol would count.
func RoundTrips(ctx context.Context, s *Sshd, r *Relay, runs int, trial Trial) (float64, error) {
	defer s.OnLogin(nil)
	var near, far []time.Duration
	for range runs {
		for _, distance := range []time.Duration{loginTrip, loginTrip + farTrip} {
			r.SetRoundTrip(loginTrip)
			s.OnLogin(func() { moveAway(r, distance) })
			d, err := trial(ctx)
			if err != nil {
				return 0, err
			}
			if distance == loginTrip {
				near = append(near, d)
			} else {
				far = append(far, d)
			}
		}
	}
	return float64(slices.Min(far)-slices.Min(near)) / float64(farTrip), nil
}

// moveAway changes the distance when a login succeeds, so that the news of it
// still travels as before and the client's answer is the first to go far.
func moveAway(r *Relay, distance time.Duration) {
	r.Set(Up, Link{Delay: distance / 2})
	time.Sleep(newsTime)
	r.Set(Down, Link{Delay: distance / 2})
}

// Median returns the middle of the durations, which must not be empty.
func Median(ds []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(ds))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}
