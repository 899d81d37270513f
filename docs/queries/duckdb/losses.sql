-- What is missing from the objects, by reason: samples that were taken and are
-- in no row. DuckDB; set first:
--   SET VARIABLE store = 's3://bucket/prefix/v1/raw/**/*.parquet';
SELECT
    replace(decode(key), 'goprof.lost: ', '') AS reason,
    sum(decode(value)::BIGINT)::BIGINT AS samples
FROM parquet_kv_metadata(getvariable('store'))
WHERE starts_with(decode(key), 'goprof.lost: ')
GROUP BY reason
ORDER BY samples DESC, reason;
