package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// holdCommand is the process of a container that is there for its network namespace, which the containers of an
// application and its sidecar join: "sallyport inject" puts it into Compose files. Being a container's first process it
// gets SIGTERM only since main asks for it.
func holdCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "hold",
		Short:  "Do nothing until SIGTERM: keeps open the network namespace that other containers join",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			fmt.Fprintln(c.ErrOrStderr(), "holding the network namespace until SIGTERM")
			<-c.Context().Done()
			return nil
		},
	}
}

const readyTimeout = 2 * time.Second

// readyCommand is the health check of the sidecar's container, whose image need not have a program that speaks HTTP.
func readyCommand() *cobra.Command {
	var address string
	c := &cobra.Command{
		Use:    "ready",
		Short:  "Ask the sidecar of this network namespace whether it is ready; status 1: no",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(c *cobra.Command, _ []string) error { return askReady(c.Context(), address) },
	}
	c.Flags().StringVar(&address, "address", "127.0.0.1:15021", "its --health-address")
	return c
}

// askReady returns the sidecar's own words where it is not.
func askReady(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/healthz/ready", nil)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // of no proxy that the environment may name
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("no sidecar answers at %s: %w", address, err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
	if resp.StatusCode != http.StatusOK {
		return errors.New("the sidecar is not ready: " + strings.TrimSpace(string(text)))
	}
	return nil
}
