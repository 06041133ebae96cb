
# Soak::Statements: random DML, as lines for psql.
package Soak::Statements;

use strict;
use warnings;

use Exporter 'import';
use Soak::Settings qw(@tables);
use Soak::Tools qw(chance pick);

our @EXPORT_OK = qw(dml size transaction);

sub dml
{
	my ($n) = @_;
	my $table = $n > 2000 ? pick('t_bulk', 't_bulk', 't_seq', 't_int') : pick(@tables);
	return sprintf "SELECT soak.dml('%s', %d, %.9f);\n", $table, $n, rand();
}

# How many rows a statement is about.
sub size { return chance(0.8) ? 1 + int(rand(5)) : 1 + int(rand(200)); }

# Lines for psql; markers tell the one who reads its output what a tag means.
sub transaction
{
	my ($gid, $large) = @_;
	my $kind = rand();

	return join '', "BEGIN;\n", dml(5000 + int(rand(95001))), "COMMIT;\n" if $large;
	return join '', "BEGIN;\n", (map { dml(size()) } 1 .. 1 + int(rand(4))), "COMMIT;\n" if $kind < 0.6;
	return join '', "BEGIN;\n", (map { dml(size()) } 1 .. 1 + int(rand(4))), "\\echo undo\nROLLBACK;\n"
	  if $kind < 0.7;
	return prepared_transaction($gid) if $kind < 0.75;

	# savepoints, nested at random
	my ($depth, $text) = (0, "BEGIN;\n");
	for (1 .. 2 + int(rand(8)))
	{
		my $what = rand();
		if ($what < 0.4) { $text .= 'SAVEPOINT s' . ++$depth . ";\n"; }
		elsif ($what < 0.6 && $depth > 0) { $text .= "\\echo undo to\nROLLBACK TO s$depth;\n"; }
		elsif ($what < 0.7 && $depth > 0) { $text .= 'RELEASE s' . $depth-- . ";\n"; }
		$text .= dml(size());
	}
	return $text . (chance(0.85) ? "COMMIT;\n" : "\\echo undo\nROLLBACK;\n");
}

# Some are left for somebody else to resolve, who may come much later.
sub prepared_transaction
{
	my ($gid) = @_;
	my $end = rand();
	return join '', "BEGIN;\n", (map { dml(1 + int(rand(5))) } 1 .. 1 + int(rand(3))),
	  "PREPARE TRANSACTION '$gid';\n",
	  $end < 0.4 ? "COMMIT PREPARED '$gid';\n" : $end < 0.7 ? "ROLLBACK PREPARED '$gid';\n" : '';
}

1;
