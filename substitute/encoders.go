package substitute

import (
	"runtime"

	"github.com/klauspost/compress/zstd"
)

// encoderWindow is how far back an encoder looks: little, for its memory. An encoder has
// about 4 MiB, and without zstd.WithLowerEncoderMem it is a quarter faster.
const encoderWindow = 1 << 20 // bytes

// encoders are the zstd encoders that may work at once: one for each processor, since
// more would only take turns. Who finds none free sends contents as they are. They are
// made when they are first needed.
type encoders chan *zstd.Encoder

func newEncoders() encoders {
	e := make(encoders, runtime.GOMAXPROCS(0))
	for range cap(e) {
		e <- nil
	}
	return e
}

// take returns nil if all are at work.
func (e encoders) take() *zstd.Encoder {
	select {
	case encoder := <-e:
		if encoder == nil {
			encoder = newEncoder()
		}
		return encoder
	default:
		return nil
	}
}

func (e encoders) put(encoder *zstd.Encoder) {
	encoder.Reset(nil)
	e <- encoder
}

func newEncoder() *zstd.Encoder {
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(encoderWindow), zstd.WithEncoderCRC(false))
	if err != nil {
		panic(err) // the options are constant
	}
	return encoder
}
