# Every setting that a database or a role can have, with values that are not
# the default, and for the whole server as well: none of them stops the stack
# or changes what is in the logs.
use strict;
use warnings;

use ElectricCM qw(new_node becomes install_compare has_xml);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $node = new_node('main', conf => q{
max_connections = 100
max_worker_processes = 40
max_wal_senders = 20
max_replication_slots = 20
electric_cm.max_managers = 12
electric_cm.reconnect_max_delay = '1 s'
allow_in_place_tablespaces = on
restart_after_crash = on
log_min_duration_statement = -1
});
my $user = $node->safe_psql('postgres', 'SELECT rolname FROM pg_authid WHERE oid = 10');
my @databases = map { "settings$_" } 1 .. 4;

# What an application's session must say for itself, since no session at all
# could work with every value of these.
my @impossible = (
	'role=none', 'statement_timeout=0', 'lock_timeout=0', 'default_transaction_read_only=off',
	'default_transaction_isolation=read\ committed', 'idle_session_timeout=0', 'idle_in_transaction_session_timeout=0',
	# libraries that there are not, less stack and temporary files than a query needs
	'session_preload_libraries=', 'local_preload_libraries=', 'max_stack_depth=2MB', 'temp_file_limit=-1',
	# a join of two tables is never planned to the end
	'geqo_generations=0',
	# with assertions, everything is looked up again and again
	'debug_discard_caches=0',
	# all that is written would be logged
	'client_min_messages=warning',
	($node->pg_version >= 17 ? 'transaction_timeout=0' : ()));

# What this test compares with is always written in the same way.
my @pinned = (
	@impossible, 'search_path=public', 'datestyle=ISO', 'intervalstyle=postgres', 'timezone=UTC', 'extra_float_digits=1',
	'bytea_output=hex', 'xmloption=content', 'lc_monetary=C', 'array_nulls=on', 'standard_conforming_strings=on',
	'transform_null_equals=off', 'quote_all_identifiers=off', 'temp_buffers=8MB', 'exit_on_error=off',
	'session_replication_role=origin', 'default_tablespace=', 'temp_tablespaces=', 'default_table_access_method=heap',
	'row_security=on', 'check_function_bodies=on', 'commit_delay=0', 'work_mem=4MB', 'debug_print_plan=off',
	'debug_print_parse=off', 'debug_print_rewritten=off',
	($node->pg_version >= 16 ? 'debug_parallel_query' : 'force_parallel_mode') . '=off');

# Settings that are not tried, and why.
my %skipped = (
	extension_destdir => 'where this test has its files',
	'transaction_isolation' => 'of a transaction', 'transaction_read_only' => 'of a transaction',
	'transaction_deferrable' => 'of a transaction');

# ... and of those of the whole server, what no server could work with: see
# above; or what contradicts another one, which is an error there.
my %not_system = map { $_ => 1 } qw(role session_preload_libraries local_preload_libraries max_stack_depth client_min_messages geqo_generations
	debug_discard_caches client_encoding temp_buffers post_auth_delay log_statement_stats log_parser_stats log_planner_stats log_executor_stats
	transaction_timeout);

# What pg_settings does not show, or a plausible value for.
my %strings = (
	role => [ 'app', 'boss' ],
	session_authorization => [ 'app', 'boss' ],
	seed => ['0.5'],
	search_path => [ 'nowhere', '"$user"', '_electric_cm, public' ],
	application_name => [ 'electric_cm replication', '' ],
	client_encoding => [ 'LATIN1', 'SQL_ASCII' ],
	DateStyle => [ 'German, DMY', 'SQL, DMY', 'Postgres, YMD' ],
	TimeZone => [ 'Asia/Kathmandu', 'America/St_Johns', 'Pacific/Kiritimati' ],
	timezone_abbreviations => [ 'Australia', 'India' ],
	lc_messages => [ 'C.UTF-8', 'POSIX' ],
	lc_monetary => [ 'C.UTF-8', 'POSIX' ],
	lc_numeric => [ 'C.UTF-8', 'POSIX' ],
	lc_time => [ 'C.UTF-8', 'POSIX' ],
	default_table_access_method => ['another_heap'],
	default_tablespace => ['elsewhere'],
	temp_tablespaces => ['elsewhere'],
	default_text_search_config => ['pg_catalog.german'],
	local_preload_libraries => ['no_such_library'],
	session_preload_libraries => [ 'no_such_library', 'auto_explain' ],
	restrict_nonsystem_relation_kind => [ 'view', 'foreign-table', 'view, foreign-table' ],
	backtrace_functions => ['errfinish,pg_re_throw'],
	wal_consistency_checking => ['heap,btree']);

sub session
{
	my ($options, $database, $sql) = @_;

	local $ENV{PGOPTIONS} = join ' ', map { "-c $_" } @$options;
	my ($rc, $out, $err) = $node->psql($database, $sql, timeout => 60);
	return ($rc, $out, $err);
}

sub judge
{
	my ($database, $sql) = @_;
	my ($rc, $out, $err) = session(\@pinned, $database, $sql);

	die "$database: $sql: $err" if $rc != 0;
	return $out;
}

sub literal { return "'" . ($_[0] =~ s/'/''/gr) . "'"; }

# Values of a setting that are not its default

sub values_of
{
	my ($name, $type, $boot, $min, $max, $enum) = @_;

	return @{ $strings{$name} } if $strings{$name};
	return $boot eq 'on' ? 'off' : 'on' if $type eq 'bool';
	return grep { $_ ne $boot } split /,/, $enum if $type eq 'enum';
	return () if $type eq 'string';
	my $middle = $type eq 'integer' ? int($boot / 2) + 1 : $boot / 2 + 0.1;
	my %seen = ($boot => 1);
	return grep { !$seen{$_}++ } $min, $max, ($middle >= $min && $middle <= $max ? $middle : ());
}

judge('postgres', $_) for 'CREATE ROLE app LOGIN', 'CREATE ROLE boss SUPERUSER LOGIN',
  q{CREATE TABLESPACE elsewhere LOCATION ''};

my (@settings, @without);
for (split /\n/, judge('postgres', q{SELECT concat_ws(E'\x01', name, vartype, boot_val, min_val, max_val, array_to_string(enumvals, ','))
	FROM (SELECT name, vartype, coalesce(boot_val, '') AS boot_val, coalesce(min_val, '') AS min_val, coalesce(max_val, '') AS max_val, coalesce(enumvals, '{}') AS enumvals
		FROM pg_settings WHERE context IN ('user', 'superuser', 'backend', 'superuser-backend') AND name NOT LIKE 'electric\_cm.%'
		UNION ALL SELECT name, 'string', '', '', '', '{}' FROM unnest('{role,session_authorization,seed}'::text[]) name) s ORDER BY name}))
{
	my @setting = split /\x01/, $_, -1;
	my $name = $setting[0];

	next if $skipped{$name};
	$strings{$name} = [ judge('postgres', "SHOW $name") . ':/nonexistent' ] if $name eq 'dynamic_library_path';
	my @values = values_of(@setting);
	push @settings, [ $name, @values ] if @values;
	push @without, $name unless @values;
}

# the views that this test looks at
push @pinned, 'restrict_nonsystem_relation_kind=' if grep { $_->[0] eq 'restrict_nonsystem_relation_kind' } @settings;

# The tables, each with a shape made before anything is set

my %columns = (
	b => [ 'bool', q{i % 2 = 0} ], f4 => [ 'float4', q{(1.1 + i)::float4} ], f8 => [ 'float8', q{0.1::float8 + i / 3::float8} ],
	n => [ 'numeric', q{i / 7.0} ], m => [ 'money', q{(1234.5 + i)::numeric::money} ], t => [ 'text', q{'back' || chr(92) || 'slash ' || i} ],
	by => [ 'bytea', q{decode('00ff5c27', 'hex')} ], d => [ 'date', q{date '2024-02-03' + i} ], tm => [ 'time', q{time '12:34:56.789' + make_interval(secs => i)} ],
	ttz => [ 'timetz', q{timetz '12:34:56+05:30'} ], ts => [ 'timestamp', q{timestamp '2024-02-03 04:05:06' + make_interval(hours => i)} ],
	tsz => [ 'timestamptz', q{timestamptz '2024-07-03 04:05:06+00' + make_interval(hours => i)} ], iv => [ 'interval', q{make_interval(1, 2, 3, i, 5, 6, 7.5)} ],
	j => [ 'json', q{'{"a": [1, null]}'::json} ], jb => [ 'jsonb', q{jsonb_build_object('a', i)} ], x => [ 'text', q{NULL} ],
	a => [ 'text[]', q{ARRAY['a', NULL, 'NULL', i::text]} ], da => [ 'date[]', q{ARRAY[date '2024-01-02' + i, NULL]} ],
	r => [ 'tstzrange', q{tstzrange(timestamptz '2024-01-01 00:00:00+00', timestamptz '2024-01-01 00:00:00+00' + make_interval(days => i))} ],
	rt => [ 'regtype', q{'pg_catalog.timestamptz'::regtype} ], rc => [ 'regclass', q{'pg_catalog.pg_class'::regclass} ], ip => [ 'inet', q{inet '10.0.0.1' + i} ],
	p => [ 'point', q{point(0.1 * i, 1 / 3.0)} ]);
$columns{x} = [ 'xml', q{xmlelement(name a, i)} ] if has_xml($node, 'postgres');
my @columns = sort keys %columns;
my $values = join ', ', map { $columns{$_}[1] } @columns;
my $clauses = q{d > DATE '2024-02-04' AND m > '$1,235.00'::money AND iv <> INTERVAL '3 days' AND tsz > TIMESTAMPTZ '2024-07-03 04:00:00+00' AND f8 <> 0.1};
my %handles;

for my $database (@databases)
{
	judge('postgres', "CREATE DATABASE $database OWNER app");
	judge($database, $_) for 'CREATE EXTENSION electric_cm', 'CREATE ACCESS METHOD another_heap TYPE TABLE HANDLER heap_tableam_handler',
	  'CREATE TABLE v (id int PRIMARY KEY, ' . join(', ', map { "$_ $columns{$_}[0]" } @columns) . ')',
	  'ALTER TABLE v REPLICA IDENTITY FULL', "INSERT INTO v SELECT i, $values FROM generate_series(1, 20) i";
	install_compare($node, $database);
	judge($database, q{SELECT electric_cm_await_active('60 s')});
	$handles{$database}{$clauses} = judge($database, "SELECT electric_cm_create_shape('v', " . literal($clauses) . ')');
}

# Does a database's stack do what it should?  '' or what is wrong.

my $id = 100;

sub judged
{
	my ($database) = @_;
	my ($rc, $out, $err);

	$id += 20;
	my ($from, $to, $old) = ($id, $id + 9, $id - 20);
	my $clause = "id <> $id OR d = DATE '2024-02-04'";

	local $@;
	my $wrong = eval {
		my $tries = 10 * $PostgreSQL::Test::Utils::timeout_default;
		while (judge($database, 'SELECT electric_cm_status()') ne 'active')
		{
			return 'not active: ' . judge($database, q{SELECT concat_ws(' ', status, step, waiting_for, last_error) FROM electric_cm_stat_manager WHERE datname = current_database()})
			  if $tries-- == 0;
			usleep(100_000);
		}

		# one that is created, and changes, with what an application has
		($rc, $out, $err) = session(\@impossible, $database, "SELECT public.electric_cm_create_shape('public.v', " . literal($clause) . ')');
		return "create_shape: $err" if $rc != 0;
		$handles{$database}{$clause} = $out;
		($rc, $out, $err) = session(\@impossible, $database, qq{
			INSERT INTO public.v SELECT i, $values FROM pg_catalog.generate_series($from, $to) i;
			UPDATE public.v SET t = 'changed', m = m * 2, x = NULL WHERE id BETWEEN $from AND $from + 3;
			DELETE FROM public.v WHERE id IN ($from, $old + 5);
			UPDATE public.v SET id = id + 10 WHERE id = $from + 1;});
		return "DML: $err" if $rc != 0;
		($rc, $out, $err) = session(\@impossible, $database, qq{SELECT count(*) FROM public.electric_cm_shape_log('$handles{$database}{$clause}')});
		return "reading: $err" if $rc != 0;
		judge($database, q{SELECT electric_cm_await_flushed(NULL, '60 s')});
		for my $shape ($clauses, $clause)
		{
			my $compared = judge($database, "SELECT wrong FROM ecm_test.compare('$handles{$database}{$shape}', 'v', " . literal($shape) . ', NULL)');
			return "replay of $shape: $compared" if $compared ne '';
		}
		judge($database, "SELECT electric_cm_drop_shape('$handles{$database}{$clause}')");
		return '';
	};
	return $wrong // "$database: $@";
}

# Gives them to whom (as "DATABASE app"); returns those that it can't have.

sub give
{
	my ($whom, @given) = @_;
	my @refused;
	my $sql = join '', map { my ($name, $value) = @$_;
		"SELECT '$name' AS refused \\gset\nALTER $whom SET $name = " .
		($name =~ /^(?:search_path|temp_tablespaces|local_preload_libraries|session_preload_libraries|restrict_nonsystem_relation_kind|DateStyle)$/ ?
			join(', ', map { literal($_) } split /, */, $value) : literal($value)) .
		";\n\\if :ERROR\n\\echo :refused\n\\endif\n" } @given;

	my ($rc, $out, $err) = do {
		local $ENV{PGOPTIONS} = join ' ', map { "-c $_" } @pinned;
		$node->psql('postgres', $sql, on_error_stop => 0);
	};
	return split /\n/, $out;
}

# The one that does it, by halving, in a database whose stack is restarted.

sub culprit
{
	my ($database, $whom, @given) = @_;

	while (@given > 1)
	{
		my @half = splice @given, 0, @given / 2;

		judge('postgres', "ALTER $whom RESET ALL");
		give($whom, @half);
		judge($database, 'SELECT electric_cm_restart()');
		@given = @half if judged($database) ne '';
	}
	judge('postgres', "ALTER $whom RESET ALL");
	return "$given[0][0] = $given[0][1]";
}

my ($failures, $tried, %refused, %names) = (0, 0);

sub try_round
{
	my ($what, %given) = @_;	# whom => [database, settings]

	for my $whom (sort keys %given)
	{
		my ($database, @given) = @{ $given{$whom} };

		# a parallel worker that is started has the database's of these, and not yet its session's
		@given = grep { $_->[0] ne 'transaction_timeout' } @given if grep { $_->[0] eq 'debug_parallel_query' } @given;
		$given{$whom} = [ $database, @given ];
		$refused{$_} = 1 for give($whom, @given);
		$names{ $_->[0] } = 1 for @given;
		$tried += @given;
	}
	$node->restart;
	for my $whom (sort keys %given)
	{
		my ($database, @given) = @{ $given{$whom} };
		my $wrong = judged($database);

		is($wrong, '', "$what: $whom, " . scalar(@given) . " settings: active, exact replay of an old and a new shape");
		next if $wrong eq '';
		$failures++;
		diag("$whom: ", culprit($database, $whom, @given));
	}
	judge('postgres', "ALTER $_ RESET ALL") for keys %given;
	return;
}

for my $round (0 .. 2)
{
	my @given = map { my ($name, @values) = @$_; [ $name, $values[ $round % @values ] ] } @settings;
	my (%of_database, %of_role);

	for my $n (0 .. $#given)
	{
		my $database = $databases[ ($n + $round) % @databases ];

		push @{ $of_database{"DATABASE $database"} }, $database unless $of_database{"DATABASE $database"};
		push @{ $of_database{"DATABASE $database"} }, $given[$n];
	}
	try_round("round $round", %of_database);
	my $whom = ("ROLE $user", "ROLE $user IN DATABASE $databases[0]", 'ROLE ALL')[$round];
	try_round("round $round", $whom => [ $databases[0], @given ]);
	try_round("round $round", SYSTEM => [ $databases[0], grep { !$not_system{ $_->[0] } } @given ]);
}

# The stack logs in as a role of its own
judge($databases[1], "ALTER DATABASE $databases[1] SET electric_cm.connection = 'user=boss'");
try_round('another role', 'ROLE boss' => [ $databases[1], map { my ($name, @values) = @$_; [ $name, $values[-1] ] } @settings ]);
is(judge($databases[1], q{SELECT count(*) > 0 FROM pg_stat_activity WHERE usename = 'boss' AND backend_type = 'walsender'}), 't', '... and so it does');

note(scalar(keys %names) . " settings tried, $tried values, $failures failures; not accepted there: "
	  . join(', ', sort keys %refused) . '; without another value: ' . join(', ', @without) . '; left out: ' . join(', ', sort keys %skipped));
cmp_ok(scalar(keys %names), '>=', 150, 'all settings have been tried');
my $log = slurp_file($node->logfile);
unlike($log, qr/terminated by signal|PANIC|TRAP:/, 'no process has crashed');
is(judge($databases[0], q{SELECT count(*) FROM electric_cm_events WHERE event IN ('manager_restarting', 'config_error') AND message NOT LIKE '%request%'}), 0, 'no manager has given up');
$node->stop;
done_testing();
