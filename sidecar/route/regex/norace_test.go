//go:build !race

package regex

const raceDetector = false
