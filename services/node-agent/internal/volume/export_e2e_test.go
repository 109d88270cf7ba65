//go:build e2e

package volume

import "time"

// SetPatience sets how long servers may take to let go of shares, and FlexVolume drivers for a command.
func (m *Manager) SetPatience(unmount, driver time.Duration) {
	m.unmountWithin, m.driverWithin = unmount, driver
}

// SetHelpers sets where mount(8) has its helpers.
func (m *Manager) SetHelpers(dirs ...string) { m.helperDirs = dirs }

// SetExpandAgain says when a driver that could not make a volume larger is asked again.
func (m *Manager) SetExpandAgain(after time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.expandAgain = after
}
