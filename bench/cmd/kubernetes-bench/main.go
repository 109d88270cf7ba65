// kubernetes-bench measures the Kubernetes API server that a kubeconfig names: Dhow's or another.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"dhow.dev/bench/kubernetes"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "kubernetes-bench:", err)
		os.Exit(1)
	}
}

func run() error {
	config := kubernetes.Config{Namespace: fmt.Sprintf("bench-%d", os.Getpid())}
	kubeconfig := flag.String("kubeconfig", os.Getenv("KUBECONFIG"), "the file that says how to reach the API server")
	most := flag.Duration("timeout", 10*time.Minute, "when to give up")
	flag.IntVar(&config.Pods, "pods", 5000, "pods to create and list")
	flag.IntVar(&config.Writers, "writers", 64, "clients that create at once")
	flag.IntVar(&config.Lists, "lists", 20, "lists in each encoding")
	flag.IntVar(&config.Watchers, "watchers", 500, "watches of one pod")
	flag.IntVar(&config.Writes, "writes", 100, "changes of that pod")
	flag.Parse()
	client, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		return err
	}
	config.Client = client
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, *most)
	defer cancel()
	r, err := kubernetes.Run(ctx, config)
	if err != nil {
		return err
	}
	line := func(what string, t kubernetes.Times) {
		fmt.Printf("%-24s min %v  p50 %v  p99 %v  max %v\n", what, t.Min.Round(10*time.Microsecond), t.P50.Round(10*time.Microsecond), t.P99.Round(10*time.Microsecond), t.Max.Round(10*time.Microsecond))
	}
	fmt.Printf("create, %d writers       %.0f pods/s\n", config.Writers, r.CreatesPerSecond)
	line(fmt.Sprintf("list %d, JSON", config.Pods), r.ListJSON)
	line(fmt.Sprintf("list %d, protobuf", config.Pods), r.ListProtobuf)
	fmt.Printf("%d writes to %d watches  %.0f events/s\n", config.Writes, config.Watchers, r.EventsPerSecond)
	line("write to receipt", r.FanOut)
	return nil
}
