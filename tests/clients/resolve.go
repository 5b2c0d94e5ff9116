// Looks names up with Go's own resolver.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
)

func main() {
	resolver := &net.Resolver{PreferGo: true}
	for _, name := range os.Args[1:] {
		found, err := resolver.LookupIP(context.Background(), "ip4", name)
		if err != nil {
			var refused *net.DNSError
			refused, _ = err.(*net.DNSError)
			fmt.Println(name, "not found:", refused != nil && refused.IsNotFound)
			continue
		}
		fmt.Println(name, found[0])
	}
}
