# copy-closure for nixpkgs: pkgs.callPackage ./package.nix { }
{ lib, buildGoModule, vendorHash ? lib.fakeHash }:

let
  version = "0.1.0";
in
buildGoModule {
  pname = "copy-closure";
  inherit version;
  src = lib.cleanSource ./.;

  # Nix prints the right one when it builds for the first time.
  inherit vendorHash;

  env.CGO_ENABLED = 0;
  subPackages = [ "." ];
  ldflags = [ "-s" "-w" "-X github.com/copy-closure/copy-closure/internal/version.release=${version}" ];

  # The tests want a Nix and an OpenSSH server of their own.
  doCheck = false;

  # What is uploaded to machines that have neither copy-closure nor Nix.
  postBuild = ''
    for target in amd64 arm64; do
      GOOS=linux GOARCH=$target go build -trimpath \
        -ldflags "-s -w -X github.com/copy-closure/copy-closure/internal/version.release=${version}" \
        -o agents/copy-closure-agent-linux-$target ./cmd/copy-closure-agent
    done
  '';
  postInstall = ''
    install -Dm755 -t $out/lib/copy-closure agents/*
    for shell in bash zsh fish; do
      $out/bin/copy-closure completion $shell > completion.$shell
    done
    install -Dm644 completion.bash $out/share/bash-completion/completions/copy-closure
    install -Dm644 completion.zsh $out/share/zsh/site-functions/_copy-closure
    install -Dm644 completion.fish $out/share/fish/vendor_completions.d/copy-closure.fish
  '';

  # The agents are for machines without Nix: they refer to nothing here.
  dontPatchELF = true;
  dontStrip = true;

  meta = {
    description = "Copies Nix store paths with all they refer to, over SSH";
    homepage = "https://github.com/copy-closure/copy-closure";
    mainProgram = "copy-closure";
    platforms = lib.platforms.unix;
  };
}
