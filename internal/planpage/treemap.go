package planpage

// A tile is a rectangle of a treemap.
type tile struct {
	X, Y, W, H float64
	Index      int // of the weight that it stands for
}

// treemap divides a rectangle of w by h into tiles whose areas are in the proportions
// of weights, which are positive and fall from the first to the last. It is the
// squarified treemap of Bruls, Huizing and van Wijk: tiles are laid in rows along the
// shorter side, each row as long as that makes its tiles squarer.
func treemap(weights []float64, w, h float64) []tile {
	var sum float64
	for _, weight := range weights {
		sum += weight
	}
	scale := w * h / sum
	rest := tile{W: w, H: h}
	tiles := make([]tile, 0, len(weights))
	for start := 0; start < len(weights); {
		end, area := growRow(weights, start, scale, min(rest.W, rest.H))
		tiles, rest = layRow(tiles, weights[start:end], start, scale, area, rest)
		start = end
	}
	return tiles
}

// growRow returns the end of the best row that begins with start, and its area.
func growRow(weights []float64, start int, scale, side float64) (end int, area float64) {
	largest := weights[start] * scale
	area, end = largest, start+1
	worst := worstRatio(area, largest, largest, side)
	for ; end < len(weights); end++ {
		next := weights[end] * scale
		ratio := worstRatio(area+next, largest, next, side)
		if ratio > worst {
			break
		}
		area, worst = area+next, ratio
	}
	return end, area
}

// worstRatio is that of the sides of the least square tile in a row.
func worstRatio(area, largest, smallest, side float64) float64 {
	thickness := area / side
	return max(largest/thickness/thickness, thickness*thickness/smallest)
}

// layRow appends the tiles of a row along the shorter side of rest, and returns what
// is left of rest.
func layRow(tiles []tile, row []float64, first int, scale, area float64, rest tile) ([]tile, tile) {
	upright := rest.W >= rest.H // the row is a column at the left
	thickness := area / min(rest.W, rest.H)
	at := 0.0
	for i, weight := range row {
		length := weight * scale / thickness
		t := tile{X: rest.X + at, Y: rest.Y, W: length, H: thickness, Index: first + i}
		if upright {
			t = tile{X: rest.X, Y: rest.Y + at, W: thickness, H: length, Index: first + i}
		}
		tiles = append(tiles, t)
		at += length
	}
	if upright {
		rest.X, rest.W = rest.X+thickness, rest.W-thickness
	} else {
		rest.Y, rest.H = rest.Y+thickness, rest.H-thickness
	}
	return tiles, rest
}
