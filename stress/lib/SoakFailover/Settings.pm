# SoakFailover::Settings: what the caller may set, and what the parts have to agree on.
package SoakFailover::Settings;

use strict;
use warnings;

use Exporter 'import';
use File::Basename qw(dirname);
use Soak::Settings qw($tmp $seed);

our @EXPORT_OK = qw($synchronized $shape_workers $round_seconds $keep_dir $deadline $corrupt $writers %shapes);

our $synchronized = $ENV{SYNCHRONIZED} // 1;
our $shape_workers = $ENV{WORKERS} || 2;
our $round_seconds = $ENV{ROUND_SECONDS} || 8;    # of load before each failover
our $keep_dir = $ENV{SOAK_LOG_DIR} || dirname($tmp) . "/electric_cm_soak_failover.$seed";
our $deadline = 120;    # seconds for whatever must happen by itself
our $corrupt = $ENV{CORRUPT} // '';
our $writers = 4;

# The shapes that live as long as the soak: name => arguments of electric_cm_create_shape()
our %shapes = (
	int => "'t_int'",
	int_where => "'t_int', 'id > 0', '{id,n}'",
	full_where => "'t_full', 'n IS NULL OR n BETWEEN 1 AND 3'",
	toast => "'t_toast'",
	index => "'t_index'",
	part => "'t_part'",
	part_columns => "'t_part', NULL, '{id,region,n}'",
	pair => "'t_pair'",
	text => "'t_text'",
	seq => "'t_seq'",
	cold => "'t_cold'",
);

die "CORRUPT=quiet, told, failover, reader or chunk\n" if $corrupt !~ /^(?:quiet|told|failover|reader|chunk)?$/;

1;
