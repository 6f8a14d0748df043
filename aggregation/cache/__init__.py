"""The item cache: all item rows of a service, finalised and as ids, in memory that processes share.

One process writes (`keeper.run_cache_writer`), any number read (`reader.ItemCache`):

    validity    how long the values of a row hold
    record      a row's cached form: values, ids, statuses, fences and when they hold
    index       id -> slot
    memory      the mapped file: header, index, records, stored rows
    writer      rows into slots; refreshes those whose values have aged
    feed        follows the store: loads, verifies, applies changes, says how fresh all is
    keeper      the process: a feed for the published plan, for a while one for the next
    pulse       by which its supervisor sees that the process moves
    reader      ids -> records, exactly as the store would give them
"""
