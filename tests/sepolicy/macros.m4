divert(-1)
# What our policy uses of AOSP's macros (system/sepolicy/public/te_macros, global_macros,
# ioctl_defines), in words of our own: no more than what a domain gets by each.
define(`r_file_perms', `{ getattr open read ioctl lock map watch }')
define(`rx_file_perms', `{ getattr open read ioctl lock map watch execute }')
define(`rw_file_perms', `{ getattr open read ioctl lock map watch append write }')
define(`create_file_perms', `{ create rename setattr unlink rw_file_perms }')
define(`r_dir_perms', `{ open getattr read search ioctl lock watch }')
define(`create_dir_perms', `{ create rename rmdir setattr add_name remove_name write r_dir_perms }')
define(`rw_socket_perms', `{
    ioctl read getattr write setattr lock append bind connect getopt setopt shutdown map
}')
define(`create_socket_perms_no_ioctl', `{
    create read getattr write setattr lock append bind connect getopt setopt shutdown map
}')
define(`global_capability_class_set', `{ capability cap_userns }')
define(`TUNSETIFF', `0x000054ca')
define(`TUNSETOFFLOAD', `0x000054d0')
define(`TUNGETIFF', `0x000054d2')
define(`TUNGETVNETHDRSZ', `0x000054d7')
define(`domain_auto_trans', `
allow $1 $2:file { getattr open read execute map };
allow $1 $3:process transition;
allow $3 $2:file { entrypoint open read execute getattr map };
allow $3 $1:process sigchld;
type_transition $1 $2:process $3;')
define(`init_daemon_domain', `domain_auto_trans(init, $1_exec, $1)')
define(`net_domain', `typeattribute $1 netdomain;')
define(`binder_use', `
allow $1 servicemanager:binder { call transfer };
allow servicemanager $1:binder { call transfer };
allow servicemanager $1:dir search;
allow servicemanager $1:file { read open };
allow servicemanager $1:process getattr;')
define(`binder_call', `
allow $1 $2:binder { call transfer };
allow $2 $1:binder transfer;
allow $1 $2:fd use;')
define(`add_service', `
allow $1 $2:service_manager { add find };
neverallow { domain -$1 } $2:service_manager add;')
define(`get_prop', `allow $1 $2:file { getattr open read map };')
define(`r_dir_file', `
allow $1 $2:dir r_dir_perms;
allow $1 $2:{ file lnk_file } { getattr read };')
divert(0)dnl
