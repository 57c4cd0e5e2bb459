# A NixOS module: the program for everybody, an account that can do nothing but serve
# the store over SSH, and a binary cache of the store over HTTP.
{ config, lib, pkgs, ... }:

let
  cfg = config.services.copy-closure;
  program = lib.getExe cfg.package;
in
{
  options.services.copy-closure = {
    enable = lib.mkEnableOption "copy-closure";

    package = lib.mkOption {
      type = lib.types.package;
      default = pkgs.callPackage ./package.nix { };
      defaultText = lib.literalExpression "pkgs.callPackage ./package.nix { }";
      description = "The package to use.";
    };

    ssh = {
      keys = lib.mkOption {
        type = lib.types.listOf lib.types.singleLineStr;
        default = [ ];
        description = "Public SSH keys that may log in as the user copy-closure; without any, there is no such user.";
      };
      write = lib.mkOption {
        type = lib.types.bool;
        default = false;
        description = "Whether these keys may add paths that a trusted key has signed, and not only read.";
      };
    };

    cache = {
      enable = lib.mkEnableOption "a binary cache of this machine's store";
      listen = lib.mkOption {
        type = lib.types.str;
        default = "127.0.0.1:8080";
        description = "Address and port.";
      };
    };
  };

  config = lib.mkIf cfg.enable {
    environment.systemPackages = [ cfg.package ];

    users = lib.mkIf (cfg.ssh.keys != [ ]) {
      groups.copy-closure = { };
      users.copy-closure = {
        isSystemUser = true;
        group = "copy-closure";
        # sshd starts the forced command by it.
        shell = pkgs.bashInteractive;
        openssh.authorizedKeys.keys = map
          (key: ''restrict,command="${program} serve ${if cfg.ssh.write then "--write" else "--read-only"}" ${key}'')
          cfg.ssh.keys;
      };
    };

    systemd.services.copy-closure-cache = lib.mkIf cfg.cache.enable {
      description = "Binary cache of the Nix store";
      wantedBy = [ "multi-user.target" ];
      after = [ "network.target" ];
      serviceConfig = {
        ExecStart = "${program} cache serve --listen ${cfg.cache.listen}";
        DynamicUser = true;
        ProtectSystem = "strict";
        ProtectHome = true;
        PrivateDevices = true;
        NoNewPrivileges = true;
        Restart = "on-failure";
      };
    };
  };
}
