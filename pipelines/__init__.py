"""The recipes that come with featpipe; they are installed as ``featpipe.pipelines``."""
