# The five things that a contributor does. CI runs .ci/run.
export CGO_ENABLED = 0

.PHONY: build test lint agents bench

build: ## copy-closure, in this directory
	go build -trimpath -o copy-closure .

test: ## all tests; as root on Debian this installs what they need
	./test.sh

lint: ## what CI checks before the tests
	test -z "$$(gofmt -l .)"
	go mod tidy -diff
	go vet ./...
	go run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...

agents: ## the programs for hosts without Nix, beside copy-closure
	./build-agents.sh .

bench: ## compare with nix-copy-closure, nix copy, tar and cp
	go run ./e2e/bench --quick
