/*-------------------------------------------------------------------------
 *
 * test_offset_epoch.c
 *	  Which epoch an LSN is in, and what is said of offsets.
 *
 *-------------------------------------------------------------------------
 */
#include <stddef.h>

#include "shape/offset_epoch.h"
#include "unit.h"

static const EcmEpoch epochs[] = {{100, 7}, {200, ECM_MAX_EPOCH}, {300, 1}};

static void
test_at(void)
{
	is_int(ecm_epoch_at(NULL, 0, 0), 0, "without epochs, all is in epoch 0");
	is_int(ecm_epoch_at(NULL, 0, UINT64_MAX), 0, "... up to the end");
	is_int(ecm_epoch_at(epochs, 3, 99), 0, "so is what comes before the first epoch");
	is_int(ecm_epoch_at(epochs, 3, 100), 7, "an epoch has its first LSN");
	is_int(ecm_epoch_at(epochs, 3, 199), 7, "... and the last one before the next");
	is_int(ecm_epoch_at(epochs, 3, 200), ECM_MAX_EPOCH, "the next one begins there");
	is_int(ecm_epoch_at(epochs, 3, UINT64_MAX), 1, "the last one has no end");
	is_int(ecm_epoch_at(epochs, 2, 300), ECM_MAX_EPOCH, "the number of epochs counts");
}

static void
test_judge(void)
{
	ok(ecm_epoch_judge(NULL, 0, 5, 0) == ECM_EPOCH_RIGHT, "without epochs, 0 is right");
	ok(ecm_epoch_judge(NULL, 0, 5, 9) == ECM_EPOCH_UNKNOWN, "... and others may come");
	ok(ecm_epoch_judge(epochs, 3, 99, 0) == ECM_EPOCH_RIGHT, "0 stays right before the first one");
	ok(ecm_epoch_judge(epochs, 3, 100, 0) == ECM_EPOCH_OTHER, "... and is wrong behind");
	ok(ecm_epoch_judge(epochs, 3, 150, 7) == ECM_EPOCH_RIGHT, "an epoch is right in it");
	ok(ecm_epoch_judge(epochs, 3, 99, 7) == ECM_EPOCH_OTHER, "... wrong before it");
	ok(ecm_epoch_judge(epochs, 3, 200, 7) == ECM_EPOCH_OTHER, "... and wrong behind it");
	ok(ecm_epoch_judge(epochs, 3, 400, 8) == ECM_EPOCH_UNKNOWN, "one may come behind the last");
	ok(ecm_epoch_judge(epochs, 3, 150, 8) == ECM_EPOCH_OTHER, "... but not between others");
}

void
test_offset_epoch(void)
{
	test_at();
	test_judge();
}
