# Derivations of every kind that Nix 2.8 registers. Evaluate with:
#   nix-instantiate --store /tmp/s --extra-experimental-features 'ca-derivations impure-derivations' graph.nix
let
  d = attrs: derivation ({ system = "x86_64-linux"; builder = "/bin/sh"; } // attrs);
  source = builtins.toFile "builder.sh" "echo \"made\" > $out\n";
  flat = d { name = "flat.tar.gz"; outputHashAlgo = "sha256"; outputHashMode = "flat"; outputHash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"; };
  recursive = d { name = "tree"; args = [ source ]; outputHashAlgo = "sha1"; outputHashMode = "recursive"; outputHash = "da39a3ee5e6b4b0d3255bfef95601890afd80709"; mirrors = flat; };
  library = d { name = "library-1.0"; outputs = [ "out" "dev" "doc" ]; args = [ "-e" source ]; src = flat; text = "tab\there, \"quoted\" \\ and\r\nlines"; };
  program = d { name = "program-2.0"; buildInputs = [ library.dev library.out recursive ]; again = library.doc; };
  structured = d { name = "structured"; __structuredAttrs = true; outputs = [ "out" "bin" ]; deep = { list = [ 1 2.5 true null program ]; }; };
  floating = d { name = "floating"; __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256"; outputs = [ "out" "lib" ]; input = program; };
  deferred = d { name = "deferred"; input = floating.lib; };
  impure = d { name = "impure"; __impure = true; outputHashMode = "recursive"; outputHashAlgo = "sha256"; };
in
{ inherit flat recursive library program structured floating deferred impure; }
