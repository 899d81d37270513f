-- Two versions of a service: the share of its CPU time that each function took
-- with all that it calls, in one and in the other, the greatest change first.
-- Spark; for `profiles` see top_functions.sql.
WITH stacks AS (
    SELECT functions, value, module_version = :after AS is_after
    FROM profiles
    WHERE date BETWEEN :first_day AND :last_day
      AND service_name = :service
      AND module_version IN (:before, :after)
      AND event = 'cpu'
), totals AS (
    SELECT
        sum(value) FILTER (WHERE NOT is_after) AS all_before,
        sum(value) FILTER (WHERE is_after) AS all_after
    FROM stacks
), frames AS (
    SELECT explode(array_distinct(functions)) AS function, value, is_after
    FROM stacks
), sums AS (
    SELECT
        function,
        coalesce(sum(value) FILTER (WHERE NOT is_after), 0) AS before_ns,
        coalesce(sum(value) FILTER (WHERE is_after), 0) AS after_ns
    FROM frames
    GROUP BY function
)
SELECT
    function,
    before_ns,
    after_ns,
    round(100 * (after_ns / all_after - before_ns / all_before), 2) AS change_percent
FROM sums CROSS JOIN totals
ORDER BY abs(change_percent) DESC, function
LIMIT 100
