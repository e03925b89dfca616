package main

import (
	"fmt"
	"os"
)

var version = "unknown"

func main() {
	fmt.Printf("hello %s from %s, uid %d\n", os.Args[1], version, os.Getuid())
}
