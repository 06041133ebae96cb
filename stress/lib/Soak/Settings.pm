
# Soak::Settings: what the caller may set, and what the parts have to agree on.
package Soak::Settings;

use strict;
use warnings;

use Exporter 'import';
use File::Basename qw(dirname);
use Time::HiRes qw(time);

our @EXPORT_OK = qw($tmp $minutes $seed $round_seconds $nworkers $keep_dir $db $dir $data $log $deadline
  $max_connections $sender_timeout @tables @leaves @relations @owners);

unless ($ENV{ECM_TMP})
{
	print STDERR "run this by way of make, or of tools/sandbox\n";
	exit 1;
}

our $tmp = $ENV{ECM_TMP};
our $minutes = $ENV{MINUTES} || 5;
our $seed = $ENV{SEED} || 1 + int(time()) % 1000000;
our $round_seconds = $ENV{ROUND_SECONDS} || 60;
our $nworkers = $ENV{WORKERS} || 4;
our $keep_dir = $ENV{SOAK_LOG_DIR} || dirname($tmp) . "/electric_cm_soak.$seed";

our $db = 'app';
our $dir = "$tmp/main";
our $data = "$dir/data";
our $log = "$dir/server.log";
our $deadline = 60;    # seconds for whatever must happen by itself
our $max_connections = 40;
our $sender_timeout = 10;    # seconds

# of stress/soak.sql
our @tables = qw(t_int t_pair t_text t_uuid t_seq t_bulk t_toast t_full t_index t_part);
our @leaves = qw(t_part_1 t_part_2 t_part_3);
our @relations = (@tables, 't_part_1', 't_part_2');    # have shapes
our @owners = qw(postgres soak_reader);

1;
