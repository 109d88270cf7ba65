// Package tablewatch tells when nftables tables of this network namespace are deleted by someone else, as `nft flush ruleset` or the restart of a firewall does.
// Whoever keeps a table writes it anew then, instead of looking at it in intervals.
package tablewatch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	deleteTable = unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_DELTABLE
	// header is the size of struct nfgenmsg, which precedes the attributes.
	header = 4
	// buffer holds the notifications of one large transaction; more are lost, which is noticed.
	buffer = 4 << 20
)

// Watch returns a channel that gets a token when a table of this name was deleted, or when notifications were lost and it may have been.
// The receiver looks whether its table is there: its own transactions can delete and add it too. The namespace is that of the calling
// goroutine's thread. The channel is closed when ctx ends.
func Watch(ctx context.Context, name string) (<-chan struct{}, error) {
	socket, err := nl.Subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return nil, fmt.Errorf("subscribe to nftables changes: %w", err)
	}
	// Forcing the size needs CAP_NET_ADMIN in the first user namespace; with the usual size notifications get lost sooner.
	_ = socket.SetReceiveBufferSize(buffer, true)
	deleted := make(chan struct{}, 1)
	stop := context.AfterFunc(ctx, socket.Close)
	go func() {
		defer close(deleted)
		defer stop()
		for {
			messages, _, err := socket.Receive()
			if errors.Is(err, os.ErrClosed) || ctx.Err() != nil {
				return
			}
			if err != nil || mentions(messages, name) {
				select {
				case deleted <- struct{}{}:
				default:
				}
			}
		}
	}()
	return deleted, nil
}

func mentions(messages []syscall.NetlinkMessage, name string) bool {
	for _, m := range messages {
		if m.Header.Type != deleteTable || len(m.Data) < header {
			continue
		}
		attributes, err := nl.ParseRouteAttr(m.Data[header:])
		if err != nil {
			return true
		}
		for _, a := range attributes {
			if a.Attr.Type == unix.NFTA_TABLE_NAME && string(bytes.TrimRight(a.Value, "\x00")) == name {
				return true
			}
		}
	}
	return false
}
